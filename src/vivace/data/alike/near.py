"""Groups of images that show nearly the same picture, from their stored pixels (no torch here).

Thumbnails of 32 px give candidates by a short descriptor, and each candidate is laid onto its image and compared.
Memory: 4 KB an image, whatever its size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vivace.data.alike.matching import MIN_CONTRAST, MIN_DETAIL, matched
from vivace.data.alike.neighbours import candidates
from vivace.data.alike.thumbnails import (
    SYMMETRIES,
    cosines,
    described,
    grey_thumbnails,
    turned,
    turned_cosines,
)
from vivace.data.caching.stored import Pixels
from vivace.data.workers import digest_of
from vivace.hardware import num_cpus

__all__ = ["Alike", "NearGroup", "near_duplicates"]

# pairs that are compared at once, by each thread
PAIRS = 256
CHUNK = 500
# images that tell what chance does, how few tell nothing, and in lots of how many they are; no more than MOST is asked
# for
NUM_CHANCE, MIN_CHANCE, LOT, MOST = 1000, 10, (4, 100), 0.998
# pairs of unlike images that chance may call the same, in all of the data
ALLOWED = 0.02
# (transposed, vertical, horizontal) → what was done to one of the two
DONE = {
    (False, 1, 1): "",
    (False, 1, -1): "mirrored",
    (False, -1, 1): "mirrored upside down",
    (False, -1, -1): "turned by 180°",
    (True, 1, 1): "mirrored and turned by 90°",
    (True, 1, -1): "turned by 90°",
    (True, -1, 1): "turned by 90°",
    (True, -1, -1): "mirrored and turned by 90°",
}


@dataclass(frozen=True)
class NearGroup:
    """Images that show nearly the same picture."""

    members: tuple[tuple[str, int], ...]
    """(split, position), in the order of the splits."""
    done: str
    """Of two images, what was done to one beside small changes, such as "mirrored"; else empty."""
    detail: float
    """The smallest correlation of details of two that were compared, in [0.88, 1]."""


@dataclass(frozen=True)
class Alike:
    """The near duplicates of a data set."""

    groups: tuple[NearGroup, ...]
    num_compared: int
    """Images that were compared, those with equal pixels as one."""
    num_flat: int
    """Images with too little detail to be told apart, which were left out."""
    min_detail: float = MIN_DETAIL
    """The correlation of details from which on two images were called the same; raised where all images are alike."""


def near_duplicates(
    splits: Mapping[str, Pixels],
    *,
    padded: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Alike:
    """Which images show nearly the same picture: resized, recompressed, mirrored, turned by 90°, cropped, recoloured.

    splits: stored images [N, S, S, C] of each. padded: as for `grey_thumbnails`. Images of equal pixels count as one;
    a group of these alone is none of ours. progress: called with (steps done, steps in all).
    """
    where = [(name, position) for name, images in splits.items() for position in range(len(images))]
    steps, done = 4 * len(where), 0

    def count(more: int) -> None:
        nonlocal done
        done = min(done + more, steps)
        progress(done, steps)

    thumbnails, distinct, copies = _distinct(splits, padded, count)
    detailed = _detailed(thumbnails)
    kept = thumbnails[detailed]
    part = len(where)
    pairs, symmetry = candidates(kept, progress=lambda at, total: count(part * at // total - part * (at - 1) // total))
    least = _least_detail(kept)
    same, detail = _compared(kept, pairs, symmetry, least, lambda share: count(int(2 * part * share)))
    found = np.flatnonzero(detailed)
    groups = _groups(distinct[found[pairs[same]]], detail[same], symmetry[same], where, copies)
    progress(steps, steps)
    return Alike(groups, len(kept), len(thumbnails) - len(kept), round(least, 4))


def _distinct(
    splits: Mapping[str, Pixels], padded: bool, count: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, dict[int, list[int]]]:
    """(thumbnails of images that differ, positions of these among all, position → all positions with its pixels)."""
    digests: list[str] = []
    for images in splits.values():
        for start in range(0, len(images), CHUNK):
            digests += [digest_of(image) for image in images[start : start + CHUNK]]
    every = [grey_thumbnails(images, padded=padded, progress=count) for images in splits.values()]
    copies: dict[str, list[int]] = defaultdict(list)
    for position, digest in enumerate(digests):
        copies[digest].append(position)
    first = np.array([positions[0] for positions in copies.values()], np.int64)
    thumbnails = np.concatenate(every) if every else np.zeros((0, 1, 1), np.float16)
    return thumbnails[first], first, {positions[0]: positions for positions in copies.values()}


def _detailed(thumbnails_NTT: np.ndarray) -> np.ndarray:
    """bool [N]: whether differences of neighbouring pixels are large enough to compare details."""
    detailed = np.zeros(len(thumbnails_NTT), bool)
    for start in range(0, len(thumbnails_NTT), CHUNK):
        block = thumbnails_NTT[start : start + CHUNK].astype(np.float32)
        power = (np.diff(block, axis=1) ** 2).mean((1, 2)) + (np.diff(block, axis=2) ** 2).mean((1, 2))
        detailed[start : start + len(block)] = np.sqrt(power / 2) >= MIN_CONTRAST / 2
    return detailed


def _least_detail(thumbnails_NTT: np.ndarray) -> float:
    """The correlation of details that a pair must have to be no chance among these images.

    Handwritten digits are alike in their details too. So the images are dealt into small lots, in which few have a
    copy, and each is laid onto the most alike one of its lot. What the best of as many lots as the data have for an
    image would reach by chance, if Fisher's z of the correlation is normal, is the least.
    """
    num = len(thumbnails_NTT)
    size = int(np.clip(num / 40, *LOT))
    order = np.random.default_rng(0).permutation(num)[:NUM_CHANCE]
    lots = [order[start : start + size] for start in range(0, len(order), size)]
    nearest = [_nearest_in(thumbnails_NTT, lot) for lot in lots if len(lot) > 1]
    if sum(len(pairs) for pairs, _ in nearest) < MIN_CHANCE:
        return MIN_DETAIL
    pairs, symmetry = (np.concatenate(values) for values in zip(*nearest, strict=True))
    _, detail = _compared(thumbnails_NTT, pairs, symmetry, MIN_DETAIL, lambda share: None, every=True)
    fisher = np.arctanh(np.clip(detail, -0.999, 0.999))
    # the median and what lies below it: above there may be copies
    below, centre = np.quantile(fisher, [0.16, 0.5])
    reach = centre + (centre - below) * NormalDist().inv_cdf(1 - ALLOWED * size / num**2)
    return float(np.clip(np.tanh(reach), MIN_DETAIL, MOST))


def _nearest_in(thumbnails_NTT: np.ndarray, lot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pairs int64 [n, 2] of each image of the lot and its nearest in it, symmetry int64 [n]), as candidates are."""
    plain = cosines(thumbnails_NTT[lot])
    stored = described(plain)
    alike = np.stack([described(turned_cosines(plain, symmetry)) @ stored.T for symmetry in SYMMETRIES])
    alike[:, np.arange(len(lot)), np.arange(len(lot))] = -1
    nearest = alike.max(0).argmax(1)
    symmetry = alike[:, np.arange(len(lot)), nearest].argmax(0)
    return np.stack([lot[nearest], lot], axis=1), symmetry


def _compared(
    thumbnails: np.ndarray,
    pairs_P2: np.ndarray,
    symmetry_P: np.ndarray,
    least: float,
    share: Callable[[float], None],
    *,
    every: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """(bool [P]: same picture, float32 [P]: correlation of details)."""
    same, detail = np.zeros(len(pairs_P2), bool), np.zeros(len(pairs_P2), np.float32)
    # pairs of one symmetry are turned at once
    order = np.argsort(symmetry_P, kind="stable")
    blocks = [
        block[start : start + PAIRS]
        for block in (order[symmetry_P[order] == number] for number in range(len(SYMMETRIES)))
        for start in range(0, len(block), PAIRS)
    ]

    def compare(block: np.ndarray) -> None:
        first, second = (thumbnails[pairs_P2[block, side]].astype(np.float32) for side in (0, 1))
        found = matched(
            first, np.ascontiguousarray(turned(second, SYMMETRIES[symmetry_P[block[0]]])), min_detail=least, every=every
        )
        same[block], detail[block] = found.same_B, found.detail_B

    with ThreadPoolExecutor(num_cpus()) as pool:
        for _ in pool.map(compare, blocks):
            share(1 / len(blocks))
    return same, detail


def _groups(
    pairs: np.ndarray,
    detail: np.ndarray,
    symmetry: np.ndarray,
    where: Sequence[tuple[str, int]],
    copies: Mapping[int, Sequence[int]],
) -> tuple[NearGroup, ...]:
    parent: dict[int, int] = {}

    def root(image: int) -> int:
        parent.setdefault(image, image)
        while parent[image] != image:
            parent[image] = parent[parent[image]]
            image = parent[image]
        return image

    for first, second in pairs.tolist():
        parent[root(first)] = root(second)
    members: dict[int, set[int]] = defaultdict(set)
    least: dict[int, float] = defaultdict(lambda: 1.0)
    how: dict[int, str] = {}
    for (first, second), value, number in zip(pairs.tolist(), detail.tolist(), symmetry.tolist(), strict=True):
        one = root(first)
        members[one] |= {*copies[first], *copies[second]}
        least[one] = min(least[one], value)
        how[one] = DONE[SYMMETRIES[number]]
    made = [
        NearGroup(
            tuple(where[position] for position in sorted(positions)),
            how[one] if len(positions) == 2 else "",
            round(least[one], 3),
        )
        for one, positions in members.items()
    ]
    place = {position: order for order, position in enumerate(where)}
    return tuple(sorted(made, key=lambda group: place[group.members[0]]))
