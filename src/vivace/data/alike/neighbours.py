"""Candidates: for each image the few that are most alike, turned and mirrored ones included (no torch here).

N images, D numbers in a descriptor, C cells, V = 16 variants of an image that are looked up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vivace.data.alike.thumbnails import SYMMETRIES, cosines, described, turned_cosines
from vivace.data.alike.warping import warped

__all__ = ["candidates"]

# up to here every image is compared with every other one
MAX_EXHAUSTIVE = 12_000
# of a variant's nearest cells, in how many it is looked up; and images in a cell, where there is one for each of them
PROBES, CELL = 8, 300
# neighbours that are kept of a variant and of an image
PER_VARIANT, PER_IMAGE = 2, 6
# of descriptors: of copies cropped by 10 % or with text over 15 % of them, 98 in 100 are more alike than this
MIN_ALIKE = 0.6
# an image is also looked up as if it were the crop of a larger one: of cropped copies among 51,000 images of CIFAR-10
# the original was then among the nearest three in 94 of 100 cases, before in 86
GROWN = 1 / 0.93
ROWS = 512


def candidates(
    thumbnails_NTT: np.ndarray, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[np.ndarray, np.ndarray]:
    """(pairs int64 [P, 2], symmetry int64 [P]): who may show the same picture; at most PER_IMAGE pairs an image.

    The second of a pair, turned by the symmetry (a row of SYMMETRIES), may be like the first. Within 12,000 images all
    are compared; of more, those in the nearest of as many cells as there are hundreds of images, so time grows as
    N · √N. progress: called with (variants done, variants in all).
    """
    num = len(thumbnails_NTT)
    if num < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    plain = cosines(thumbnails_NTT)
    stored = described(plain)
    cells, members = _cells(stored)
    grown = np.concatenate([cosines(warped(part, GROWN)) for part in np.array_split(thumbnails_NTT, num // 2000 + 1)])
    found, alike, how = [], [], []
    total = 2 * len(SYMMETRIES)
    for variant, looked in enumerate([plain, grown]):
        for number, symmetry in enumerate(SYMMETRIES):
            others, similar = _look_up(described(turned_cosines(looked, symmetry)), stored, cells, members)
            found.append(others)
            alike.append(similar)
            how.append(np.full(others.shape, number))
            progress(variant * len(SYMMETRIES) + number + 1, total)
    return _pairs(*(np.concatenate(values, axis=1) for values in (found, alike, how)))


def _cells(stored_ND: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """(centres [C, D], positions of the images in each cell) by a few steps of spherical k-means on a sample."""
    num = len(stored_ND)
    if num <= MAX_EXHAUSTIVE:
        return stored_ND[:1], [np.arange(num)]
    rng = np.random.default_rng(0)
    count = max(2, int(np.sqrt(num)))
    sample = stored_ND[rng.permutation(num)[: 40 * count]]
    centres = sample[:count].copy()
    for _ in range(6):
        nearest = _nearest(sample, centres, 1)[:, 0]
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, sample)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        # an empty cell keeps its centre
        centres = np.where(length > 0, sums / np.maximum(length, 1e-6), centres)
    nearest = _nearest(stored_ND, centres, 1)[:, 0]
    order = np.argsort(nearest, kind="stable")
    bounds = np.searchsorted(nearest[order], np.arange(count + 1))
    return centres, [order[bounds[cell] : bounds[cell + 1]] for cell in range(count)]


def _nearest(rows: np.ndarray, centres: np.ndarray, count: int) -> np.ndarray:
    """The `count` nearest centres of each row, int64 [n, count]."""
    made = np.zeros((len(rows), count), np.int64)
    for start in range(0, len(rows), 8 * ROWS):
        similar = rows[start : start + 8 * ROWS] @ centres.T
        for place in range(count):
            best = similar.argmax(1)
            made[start : start + len(best), place] = best
            similar[np.arange(len(best)), best] = -np.inf
    return made


def _look_up(
    looked_ND: np.ndarray, stored_ND: np.ndarray, centres: np.ndarray, members: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(positions int64 [N, n], similarities [N, n]) of the stored ones nearest to each image; -1: there is none."""
    probes = min(PROBES, len(members))
    others = np.full((len(looked_ND), probes * PER_VARIANT), -1, np.int64)
    alike = np.full(others.shape, -np.inf, np.float32)
    asked = _nearest(looked_ND, centres, probes) if len(members) > 1 else np.zeros((len(looked_ND), 1), np.int64)
    order = np.argsort(asked, axis=None, kind="stable")
    bounds = np.searchsorted(asked.ravel()[order], np.arange(len(members) + 1))
    for cell, inside in enumerate(members):
        if not len(inside):
            continue
        kept = stored_ND[inside].T
        for start in range(bounds[cell], bounds[cell + 1], ROWS):
            rows, probe = np.divmod(order[start : min(start + ROWS, bounds[cell + 1])], probes)
            similar = looked_ND[rows] @ kept
            similar[rows[:, None] == inside] = -np.inf
            lines = np.arange(len(rows))
            for place in range(PER_VARIANT):
                best = similar.argmax(1)
                alike[rows, probe * PER_VARIANT + place] = similar[lines, best]
                others[rows, probe * PER_VARIANT + place] = inside[best]
                similar[lines, best] = -np.inf
    if probes == 1:
        return others, alike
    top = np.argsort(-alike, axis=1)[:, :PER_VARIANT]
    return np.take_along_axis(others, top, 1), np.take_along_axis(alike, top, 1)


def _pairs(found: np.ndarray, alike: np.ndarray, how: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best PER_IMAGE different neighbours of each image, each pair once."""
    order = np.argsort(-alike, axis=1)
    found, alike, how = (np.take_along_axis(values, order, 1) for values in (found, alike, how))
    # a neighbour that was found by several variants counts once, by the most alike
    again = np.zeros(found.shape, bool)
    for place in range(1, found.shape[1]):
        again[:, place] = (found[:, :place] == found[:, place : place + 1]).any(1)
    kept = ~again & (alike >= MIN_ALIKE)
    kept &= np.cumsum(kept, axis=1) <= PER_IMAGE
    rows, places = np.nonzero(kept)
    second, number = found[rows, places], how[rows, places]
    # the one that was looked up was turned
    pairs = np.stack([second, rows], axis=1)
    key = np.minimum(pairs[:, 0], pairs[:, 1]) * len(found) + np.maximum(pairs[:, 0], pairs[:, 1])
    best = np.lexsort((-alike[rows, places], key))
    first = best[np.r_[True, key[best][1:] != key[best][:-1]]] if len(best) else best
    return pairs[first], number[first]
