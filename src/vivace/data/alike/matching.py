"""Whether two thumbnails show the same picture: laid onto each other, then compared in their details (no torch here).

B pairs, T px, G = GRID blocks a side. The second image is warped and its contrast fitted; a quarter of the blocks may
differ, as where text was laid over one. What is left is compared without its coarse shading, which unlike pictures (a
dark car on a bright ground, a plane in the sky) often share. The constants were chosen on copies of 300 images of
CIFAR-10 and of flowers, and measured on others: `benchmarks/audit.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from vivace.data.alike.warping import places, warp

__all__ = ["MIN_CONTRAST", "MIN_DETAIL", "Matched", "matched"]

COARSE = 16
GRID = 8
# of the blocks, those that differ most are left out of the comparison
LEFT_OUT = 0.25
# px of a thumbnail: what is smoother than this is shading and not detail; and finer details
SHADING, FINE = 2.0, 1.0
# correlations that copies reach: at 16 px before and after laying them onto each other; at the end of the whole
# pictures, of their details and of their fine details
MIN_COARSE, MIN_LAID, MIN_WHOLE, MIN_DETAIL, MIN_FINE = 0.45, 0.8, 0.85, 0.88, 0.6
# grey levels, the standard deviation of details: flatter pictures can't be told apart
MIN_CONTRAST = 2.0
MIN_OVERLAP = 0.6
# limits of what is looked for: crops to 80 % of a side, and the shifts that go with them
MIN_SCALE, MAX_SHIFT = 0.8, 0.25
STEP = 0.06


@dataclass(frozen=True)
class Matched:
    """What the comparison of B pairs found."""

    same_B: np.ndarray
    """bool: whether both show the same picture."""
    detail_B: np.ndarray
    """float32, the correlation of details; 0 of pairs that were already out before it."""
    warps_B4: np.ndarray
    """float32, how the first is laid onto the second."""


def matched(
    first_BTT: np.ndarray, second_BTT: np.ndarray, *, min_detail: float = MIN_DETAIL, every: bool = False
) -> Matched:
    """Compare thumbnails float32 [B, T, T], of which the second are turned as the candidates say. T is 32.

    min_detail: the correlation of details that copies have at least. every: find that of all pairs, also of those that
    are out before it.
    """
    num = len(first_BTT)
    detail, same = np.zeros(num, np.float32), np.zeros(num, bool)
    small_a, small_b = _halved(first_BTT), _halved(second_BTT)
    warps, alike = _coarse(small_a, small_b)
    rows = np.flatnonzero((alike >= MIN_COARSE) | every)
    if len(rows):
        a, b = small_a[rows], small_b[rows]
        best = np.full(len(rows), -2, np.float32)
        # text may mislead the choice of a crop, so what is not cropped is tried as well
        for start in (warps[rows], np.tile(np.array([1, 0, 1, 0], np.float32), (len(rows), 1))):
            tried = _refined(a, b, start, steps=4)
            laid, inside = warp(a, tried)
            alike = _trimmed(laid, b, inside)[0]
            better = alike > best
            best[better], warps[rows[better]] = alike[better], tried[better]
        rows = rows[(best >= MIN_LAID) | every]
    if len(rows):
        a, b = first_BTT[rows], second_BTT[rows]
        warps[rows] = _refined(a, b, warps[rows], steps=4)
        laid, inside = warp(a, warps[rows])
        whole, _, inside_and_alike = _trimmed(laid, b, inside)
        # shading is taken of what is alone alike, or the border of a caption would reach into its surroundings
        details, contrast = _alike(*_details(laid, b, inside_and_alike, SHADING), inside_and_alike)
        fine, _ = _alike(*_details(laid, b, inside_and_alike, FINE), inside_and_alike)
        detail[rows] = details
        same[rows] = (
            (whole >= MIN_WHOLE)
            & (details >= min_detail)
            & (fine >= MIN_FINE)
            & (contrast >= MIN_CONTRAST)
            & (inside.mean((1, 2)) >= MIN_OVERLAP)
        )
    return Matched(same, detail, warps)


def _halved(images_BTT: np.ndarray) -> np.ndarray:
    batch, side, _ = images_BTT.shape
    return images_BTT.reshape(batch, side // 2, 2, side // 2, 2).mean((2, 4))


@cache
def _starts() -> tuple[tuple[float, float], ...]:
    """(scale, shift) along an axis: as it is, and a crop to 90 % from either image at the start, centre or end."""
    return ((1.0, 0.0), *((scale, place * abs(1 - scale)) for scale in (0.9, 1 / 0.9) for place in (-0.9, 0.0, 0.9)))


def _coarse(a_BTT: np.ndarray, b_BTT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(of 19 crops the one at which the images correlate best [B, 4], that correlation [B])."""
    batch = len(a_BTT)
    best, warps = np.full(batch, -2, np.float32), np.zeros((batch, 4), np.float32)
    for x in _starts():
        for y in _starts():
            if x[0] != y[0]:
                continue
            laid, inside = _warp_all(a_BTT, (*x, *y))
            alike = _correlation(laid[:, inside], b_BTT[:, inside])
            better = alike > best
            best[better], warps[better] = alike[better], (*x, *y)
    return warps, best


def _warp_all(images_BTT: np.ndarray, one: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """(the images by one warp, bool [T, T]: inside)."""
    side = images_BTT.shape[-1]
    weights, inside = _matrices(one, side)
    return weights[1] @ images_BTT @ weights[0].T, inside


@cache
def _matrices(one: tuple[float, float, float, float], side: int) -> tuple[np.ndarray, np.ndarray]:
    """(weights [2, T, T] along x and y, bool [T, T])."""
    eye = np.eye(side, dtype=np.float32)[None]
    # warping the identity along the rows alone gives the weights of an axis
    across, down = (warp(eye, np.array([[1, 0, *along]], np.float32))[0][0] for along in (one[:2], one[2:]))
    return np.stack([across, down]), warp(eye, np.array([one], np.float32))[1][0] > 0


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the rows of a and b."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    power = np.einsum("bn,bn->b", a, a) * np.einsum("bn,bn->b", b, b)
    return np.einsum("bn,bn->b", a, b) / np.sqrt(power + 1e-3)


def _refined(a_BTT: np.ndarray, b_BTT: np.ndarray, warps_B4: np.ndarray, *, steps: int) -> np.ndarray:
    """Better warps, by steps of Gauss and Newton that weigh down what fits badly (Lucas and Kanade 1981)."""
    batch, side, _ = a_BTT.shape
    place, warps = places(side), warps_B4
    target = b_BTT.reshape(batch, -1)
    for _ in range(steps):
        laid, inside = warp(a_BTT, warps)
        slope = np.zeros((batch, 6, side, side), np.float32)
        slope[:, 1, :, 1:-1] = (laid[:, :, 2:] - laid[:, :, :-2]) * (side / 4 / warps[:, 0, None, None])
        slope[:, 3, 1:-1] = (laid[:, 2:] - laid[:, :-2]) * (side / 4 / warps[:, 2, None, None])
        slope[:, 0], slope[:, 2] = slope[:, 1] * place, slope[:, 3] * place[:, None]
        slope[:, 4], slope[:, 5] = laid, 1
        slopes: np.ndarray = slope.reshape(batch, 6, -1)
        within = inside.reshape(batch, -1)
        gain, rest = _fitted(slopes[:, 4], target, within)
        spread = np.sqrt((rest * rest * within).sum(1) / within.sum(1)) + 1e-3
        trust = within / (1 + (rest / (1.5 * spread[:, None])) ** 2)
        slopes[:, :4] *= gain[:, None, None]
        weighted = slopes * trust[:, None]
        normal = weighted @ slopes.transpose(0, 2, 1)
        size = np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6
        normal += np.eye(6, dtype=np.float32) * (1e-4 * size + 1e-6)
        step = np.linalg.solve(normal, weighted @ rest[:, :, None])[:, :4, 0]
        warps = warps + np.clip(step, -STEP, STEP)
        warps[:, 0::2] = np.clip(warps[:, 0::2], MIN_SCALE, 1 / MIN_SCALE)
        warps[:, 1::2] = np.clip(warps[:, 1::2], -MAX_SHIFT, MAX_SHIFT)
    return warps


def _fitted(a: np.ndarray, b: np.ndarray, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(contrast of b in that of a [B], what this leaves of b [B, n]); within: weights [B, n]."""
    total = within.sum(1, keepdims=True)
    mean_a, mean_b = ((values * within).sum(1, keepdims=True) / total for values in (a, b))
    a, b = a - mean_a, b - mean_b
    gain = (a * b * within).sum(1) / ((a * a * within).sum(1) + 1e-3)
    return gain, b - gain[:, None] * a


def _details(
    a_BTT: np.ndarray, b_BTT: np.ndarray, inside_BTT: np.ndarray, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Both without their shading, a Gaussian of `width` px that looks at what lies inside alone."""
    smooth = _gaussian(a_BTT.shape[-1], width)
    share = smooth @ inside_BTT @ smooth + 1e-3
    a, b = (values - (smooth @ (values * inside_BTT) @ smooth) / share for values in (a_BTT, b_BTT))
    return a, b


@cache
def _gaussian(side: int, width: float) -> np.ndarray:
    """float32 [T, T], symmetric; rows sum to 1 away from the border."""
    apart = np.arange(side)[:, None] - np.arange(side)
    return (np.exp(-0.5 * (apart / width) ** 2) / (width * np.sqrt(2 * np.pi))).astype(np.float32)


def _trimmed(a_BTT: np.ndarray, b_BTT: np.ndarray, inside_BTT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(correlation [B], standard deviation of b [B], weights [B, T, T]) without the blocks that differ most."""
    batch, side, _ = a_BTT.shape
    a, b, inside = (values.reshape(batch, -1) for values in (a_BTT, b_BTT, inside_BTT))
    within: np.ndarray = inside
    for _ in range(2):
        # fitted anew without the blocks that the first fit found to differ
        _, rest = _fitted(a, b, within)
        error = _blocks((rest * inside).reshape(batch, side, side) ** 2)
        count = _blocks(inside_BTT)
        error = np.where(count > 0, error / np.maximum(count, 1), -1)
        limit = np.sort(error, axis=1)[:, -int(LEFT_OUT * GRID * GRID) - 1]
        kept = (error <= limit[:, None]).reshape(batch, GRID, GRID).astype(np.float32)
        within = inside * kept.repeat(side // GRID, 1).repeat(side // GRID, 2).reshape(batch, -1)
    left = within.reshape(batch, side, side)
    return *_alike(a_BTT, b_BTT, left), left


def _alike(a_BTT: np.ndarray, b_BTT: np.ndarray, within_BTT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(correlation [B], standard deviation of b [B]) of the weighted pixels."""
    a, b, within = (values.reshape(len(values), -1) for values in (a_BTT, b_BTT, within_BTT))
    total = np.maximum(within.sum(1, keepdims=True), 1)
    a, b = (((values - (values * within).sum(1, keepdims=True) / total) * within) for values in (a, b))
    power_b = np.einsum("bn,bn->b", b, b)
    alike = np.einsum("bn,bn->b", a, b) / np.sqrt(np.einsum("bn,bn->b", a, a) * power_b + 1e-3)
    return alike, np.sqrt(power_b / total[:, 0])


def _blocks(values_BTT: np.ndarray) -> np.ndarray:
    """Sums over blocks, [B, G²]."""
    batch, side, _ = values_BTT.shape
    size = side // GRID
    return values_BTT.reshape(batch, GRID, size, GRID, size).sum((2, 4)).reshape(batch, -1)
