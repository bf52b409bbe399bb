"""Metrics of images with sets of labels: average precision, F1 at thresholds, exact match, Hamming loss.

Shape suffixes: N images, K labels. Labels without a positive image have no average precision; means leave them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vivace.statistics.proportions import wilson_interval

__all__ = [
    "DEFAULT_THRESHOLD",
    "LabelMetrics",
    "MultiLabelMetrics",
    "average_precision",
    "best_thresholds",
    "evaluate_sets",
    "macro_average_precision",
]

DEFAULT_THRESHOLD = 0.5
# a label with fewer images, or with fewer images without it, gets the threshold that is best for all labels together:
# its own would fit chance
MIN_EXAMPLES = 10
NUM_BINS = 15
SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True, kw_only=True)
class LabelMetrics:
    """The metrics of one label."""

    name: str
    average_precision: float | None
    """None without an image that has the label."""
    precision: float
    """Fraction of the images predicted to have the label that have it; 0 if there are none."""
    recall: float
    """Fraction of the images that have it that were predicted to; 0 if there are none."""
    f1: float
    support: int
    """Number of images that have it."""
    threshold: float
    """Probability from which on it is predicted."""


@dataclass(frozen=True, kw_only=True)
class MultiLabelMetrics:
    """Metrics on images with sets of labels. `_low` and `_high` are Wilson's 95 % interval."""

    num_images: int
    map: float
    """Mean over labels of their average precision."""
    map_micro: float
    """Average precision of all pairs of an image and a label together."""
    f1_macro: float
    """Mean over labels of their F1, as for `map` without labels that no image has."""
    f1_micro: float
    exact_match: float
    """Fraction of the images whose predicted set is the true one."""
    exact_match_low: float
    exact_match_high: float
    hamming_loss: float
    """Fraction of the pairs of an image and a label that are predicted wrongly."""
    bce: float
    """Mean binary cross-entropy of these pairs, nats."""
    ece: float
    """Expected calibration error of these pairs, over 15 bins of the probability, in [0, 1]."""
    per_label: tuple[LabelMetrics, ...]
    without_images: tuple[str, ...]
    """Labels that no image has."""

    def summary(self) -> dict[str, Any]:
        """The scalar metrics, without the table."""
        names = ("num_images", "map", "map_micro", "f1_macro", "f1_micro", "exact_match", "exact_match_low")
        return {name: getattr(self, name) for name in (*names, "exact_match_high", "hamming_loss", "bce", "ece")}


def average_precision(scores_N: ArrayLike, hits_N: ArrayLike) -> float:
    """Σ (R_n - R_n-1) · P_n over the distinct scores from high to low, in [0, 1]; NaN without a hit.

    P_n and R_n are precision and recall of what has a score of at least the n-th. scores_N: float. hits_N: bool. The
    definition is that of scikit-learn's average_precision_score, without interpolation.
    """
    scores, hits = np.asarray(scores_N), np.asarray(hits_N, dtype=bool)
    if not hits.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ordered, found = scores[order], np.cumsum(hits[order])
    # equal scores are taken or left together
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    precision, recall = found[last] / (last + 1), found[last] / found[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def macro_average_precision(scores_NK: ArrayLike, hits_NK: ArrayLike) -> float:
    """The mean average precision over the labels that some image has; NaN if none has any. A NaN score ranks last."""
    scores, hits = np.nan_to_num(np.asarray(scores_NK), nan=-np.inf), np.asarray(hits_NK, dtype=bool)
    values = [average_precision(scores[:, label], hits[:, label]) for label in np.flatnonzero(hits.any(0))]
    return float(np.mean(values)) if values else float("nan")


def best_thresholds(probs_NK: np.ndarray, hits_NK: np.ndarray) -> np.ndarray:
    """The threshold of each label that maximizes its F1 on these images, float64 [K] in (0, 1).

    It is the middle between two neighbouring probabilities. Labels with fewer than 10 images, or fewer than 10 without
    it, get the threshold with the best micro F1 of all labels. Ties: the threshold closest to 0.5.
    """
    shared = _best_threshold(probs_NK.reshape(-1), hits_NK.reshape(-1))
    counts = hits_NK.sum(0)
    rare = np.minimum(counts, len(hits_NK) - counts) < MIN_EXAMPLES
    return np.array(
        [
            shared if rare[label] else _best_threshold(probs_NK[:, label], hits_NK[:, label])
            for label in range(len(rare))
        ]
    )


def _best_threshold(probs_n: np.ndarray, hits_n: np.ndarray) -> float:
    if not hits_n.any():
        return DEFAULT_THRESHOLD
    order = np.argsort(-probs_n, kind="stable")
    ordered, found = probs_n[order].astype(np.float64), np.cumsum(hits_n[order])
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    # F1 = 2 · hits / (predicted + positive)
    f1 = 2 * found[last] / (last + 1 + found[-1])
    # below the lowest probability everything is predicted, halfway to 0
    below = np.append(ordered[last[:-1] + 1], 0.0)
    middles = (ordered[last] + below) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(middles[best[np.abs(middles[best] - DEFAULT_THRESHOLD).argmin()]])


def evaluate_sets(
    probs_NK: np.ndarray, hits_NK: np.ndarray, classes: Sequence[str], thresholds_K: Sequence[float]
) -> MultiLabelMetrics:
    """The metrics of probs_NK (float in [0, 1]) against hits_NK (bool); a label is predicted at p >= its threshold.

    Raises ValueError if there are no images, if sizes differ, or if a probability is outside [0, 1].
    """
    num_images, num_labels = probs_NK.shape
    if num_images == 0:
        raise ValueError("there are no images to evaluate on")
    if hits_NK.shape != probs_NK.shape or len(classes) != num_labels or len(thresholds_K) != num_labels:
        raise ValueError(
            f"sizes differ: {num_images} × {num_labels} probabilities, labels {hits_NK.shape}, {len(classes)} classes, "
            f"{len(thresholds_K)} thresholds"
        )
    probs, hits = np.asarray(probs_NK, dtype=np.float64), np.asarray(hits_NK, dtype=bool)
    if not ((probs >= 0) & (probs <= 1)).all():
        raise ValueError("probabilities must be from 0 to 1. Pass probabilities, not logits.")
    predicted = probs >= np.asarray(thresholds_K)
    rows = tuple(
        _row(name, probs[:, label], hits[:, label], predicted[:, label], float(thresholds_K[label]))
        for label, name in enumerate(classes)
    )
    seen = [row for row in rows if row.support]
    exact = (predicted == hits).all(1)
    low, high = wilson_interval(int(exact.sum()), num_images)
    clipped = np.clip(probs, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return MultiLabelMetrics(
        num_images=num_images,
        map=float(np.mean([row.average_precision for row in seen])) if seen else 0.0,
        map_micro=average_precision(probs.reshape(-1), hits.reshape(-1)) if seen else 0.0,
        f1_macro=float(np.mean([row.f1 for row in seen])) if seen else 0.0,
        f1_micro=_f1(int((predicted & hits).sum()), int(predicted.sum()), int(hits.sum())),
        exact_match=float(exact.mean()),
        exact_match_low=low,
        exact_match_high=high,
        hamming_loss=float((predicted != hits).mean()),
        bce=float(-np.where(hits, np.log(clipped), np.log1p(-clipped)).mean()),
        ece=_calibration_error(probs.reshape(-1), hits.reshape(-1)),
        per_label=rows,
        without_images=tuple(row.name for row in rows if not row.support),
    )


def _row(name: str, probs_N: np.ndarray, hits_N: np.ndarray, predicted_N: np.ndarray, threshold: float) -> LabelMetrics:
    right, called, support = int((predicted_N & hits_N).sum()), int(predicted_N.sum()), int(hits_N.sum())
    return LabelMetrics(
        name=name,
        average_precision=average_precision(probs_N, hits_N) if support else None,
        precision=right / called if called else 0.0,
        recall=right / support if support else 0.0,
        f1=_f1(right, called, support),
        support=support,
        threshold=threshold,
    )


def _f1(right: int, called: int, support: int) -> float:
    return 2 * right / (called + support) if called + support else 0.0


def _calibration_error(probs_n: np.ndarray, hits_n: np.ndarray) -> float:
    """Mean |probability - frequency| over equal-width bins of the probability (arXiv:1706.04599, for two classes)."""
    bins = np.clip(np.ceil(probs_n * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    gaps = np.bincount(bins, weights=probs_n, minlength=NUM_BINS) - np.bincount(
        bins, weights=hits_n, minlength=NUM_BINS
    )
    return float(np.abs(gaps).sum() / len(probs_n))
