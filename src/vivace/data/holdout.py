"""Holding out a validation split: stratified, and equal images stay on one side."""

from __future__ import annotations

import numpy as np

__all__ = ["hold_out"]


def hold_out(
    labels_N: np.ndarray, groups_N: np.ndarray, fraction: float, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out): sorted int64 positions; of every class about `fraction` is held out, at least one image.

    labels_N: int64. groups_N: anything comparable, such as content digests: images of one group stay on one side, lest
    the network be validated on what it was trained on. A class that is a single group, and a group that is in several
    classes, stay wholly in training.
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
        wanted = max(1, round(fraction * len(members)))
        chosen: list[int] = []
        num_held = 0
        for group in order:
            # the class keeps a group to train on, and a large group of copies does not swamp the validation
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
