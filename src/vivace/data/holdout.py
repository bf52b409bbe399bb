"""Holds out a stratified validation split; copies of an image stay on the same side."""

from __future__ import annotations

import numpy as np

__all__ = ["hold_out", "hold_out_sets", "strata"]


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


def hold_out_sets(
    labels_N: np.ndarray,
    label_sets_MK: np.ndarray,
    groups_N: np.ndarray,
    fraction: float,
    *,
    seed: int = 0,
    known_N: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`hold_out` for images with sets of labels: stratified by their combination, and by label where these are rare.

    labels_N: int64 in [0, M), the combination of each image. A label whose images are in several groups has some on
    both sides, where that takes no other label's last image from one of them.
    """
    _, held = hold_out(strata(labels_N, label_sets_MK, fraction), groups_N, fraction, seed=seed, known_N=known_N)
    sets_NK = label_sets_MK[labels_N]
    on_val_N = np.zeros(len(labels_N), dtype=bool)
    on_val_N[held] = True
    mixed = _groups_of_several_labels(labels_N, groups_N)
    rng = np.random.default_rng(seed)
    # rare labels first: there is the least choice for them
    for label in np.argsort(sets_NK.sum(0), kind="stable"):
        for to_val in (True, False):
            members = np.flatnonzero(sets_NK[:, label])
            if not len(members) or (on_val_N[members] == to_val).any():
                continue
            for group in rng.permutation(np.unique(groups_N[members])):
                moved_N = groups_N == group
                left = sets_NK[~moved_N & (on_val_N != to_val)].sum(0)
                if (not to_val or group not in mixed) and (left[sets_NK[moved_N].any(0)] > 0).all():
                    on_val_N[moved_N] = to_val
                    break
    return np.flatnonzero(~on_val_N).astype(np.int64), np.flatnonzero(on_val_N).astype(np.int64)


def strata(labels_N: np.ndarray, label_sets_MK: np.ndarray, fraction: float) -> np.ndarray:
    """What images with sets of labels are stratified by, int64 [N]: their combination, or the rarest of its labels.

    A combination with too few images for one to be held out of them is pooled with others of the same rarest label.
    """
    counts_M = np.bincount(labels_N, minlength=len(label_sets_MK))
    counts_K = counts_M @ label_sets_MK.astype(np.int64)
    rarest_M = np.where(label_sets_MK, counts_K, np.iinfo(np.int64).max).argmin(1)
    # images without a label are a stratum of their own
    rarest_M = np.where(label_sets_MK.any(1), rarest_M, label_sets_MK.shape[1])
    pooled_M = np.where(fraction * counts_M >= 1, np.arange(len(counts_M)), len(counts_M) + rarest_M)
    return np.unique(pooled_M[labels_N], return_inverse=True)[1].reshape(-1).astype(np.int64)
