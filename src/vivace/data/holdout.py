"""Holds out a stratified validation split; copies of an image stay on the same side."""

from __future__ import annotations

import numpy as np

__all__ = ["hold_out"]


def hold_out(
    labels_N: np.ndarray,
    groups_N: np.ndarray,
    fraction: float,
    *,
    seed: int = 0,
    known_N: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out) as sorted int64 positions; about `fraction` of each class, and at least one image, is held out.

    labels_N: int64. groups_N: comparable values such as content digests; images of a group stay on the same side, so
    that the network is not validated on what it was trained on. A class with a single group, and a group with several
    classes, stay entirely in training. known_N: bool, which images the network was trained on before: of each class the
    others are held out first.
    """
    rng = np.random.default_rng(seed)
    held: list[np.ndarray] = []
    mixed = _groups_of_several_labels(labels_N, groups_N)
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        groups, which, counts = np.unique(groups_N[members], return_inverse=True, return_counts=True)
        order = [group for group in rng.permutation(len(groups)) if groups[group] not in mixed]
        if len(groups) < 2 or not order:
            continue
        if known_N is not None:
            known = np.zeros(len(groups), dtype=bool)
            np.logical_or.at(known, which, known_N[members])
            order.sort(key=lambda group: bool(known[group]))
        wanted = max(1, round(fraction * len(members)))
        chosen: list[int] = []
        num_held = 0
        for group in order:
            # leave the class at least one group to train on, and don't let a large group of copies fill the validation
            if num_held >= wanted or len(chosen) == len(groups) - 1:
                break
            if num_held + counts[group] <= wanted:
                chosen.append(group)
                num_held += counts[group]
        chosen = chosen or [min(order, key=lambda group: counts[group])]
        held.append(members[np.isin(which, chosen)])
    held_out = np.sort(np.concatenate(held)) if held else np.empty(0, dtype=np.int64)
    kept = np.setdiff1d(np.arange(len(labels_N)), held_out)
    return kept.astype(np.int64), held_out.astype(np.int64)


def _groups_of_several_labels(labels_N: np.ndarray, groups_N: np.ndarray) -> set[object]:
    groups, first, which = np.unique(groups_N, return_index=True, return_inverse=True)
    return set(groups[np.unique(which[labels_N != labels_N[first][which]])].tolist())
