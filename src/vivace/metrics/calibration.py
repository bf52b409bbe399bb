"""Calibration: whether probabilities mean what they say. Shapes: B images, K classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["expected_calibration_error", "negative_log_likelihood"]

# sums of float32 probabilities over a thousand classes stay well within this
ROW_SUM_TOLERANCE = 1e-3
SMALLEST_PROBABILITY = 1e-12


def expected_calibration_error(probs_BK: ArrayLike, labels_B: ArrayLike, *, num_bins: int = 15) -> float:
    """Mean |confidence - accuracy| over equal-width bins of the top probability, in [0, 1].

    probs_BK: float, rows sum to 1. labels_B: int64 in [0, K).
    Raises ValueError if a row does not sum to 1 (were logits passed?) or holds NaN.
    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    probs, labels = _checked(probs_BK), np.asarray(labels_B)
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    # a bin is open on the left: a confidence of exactly 1 belongs to the last one
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    gaps = np.abs(
        np.bincount(bins, weights=confidence, minlength=num_bins)
        - np.bincount(bins, weights=correct, minlength=num_bins)
    )
    return float(gaps.sum() / max(counts.sum(), 1))


def negative_log_likelihood(probs_BK: ArrayLike, labels_B: ArrayLike) -> float:
    """Mean -log of the probability of the true class, nats, >= 0; a probability of 0 counts as 1e-12.

    Raises ValueError if a row does not sum to 1 or holds NaN.
    """
    probs, labels = _checked(probs_BK), np.asarray(labels_B)
    own = np.take_along_axis(probs, labels[:, None], axis=1)
    return float(-np.log(np.clip(own, SMALLEST_PROBABILITY, 1)).mean())


def _checked(probs_BK: ArrayLike) -> np.ndarray:
    probs = np.asarray(probs_BK, dtype=np.float64)
    sums = probs.sum(1)
    # written so that NaN fails too
    wrong = ~(np.abs(sums - 1) <= ROW_SUM_TOLERANCE)
    if wrong.any():
        worst = float(sums[wrong.argmax()])
        raise ValueError(f"rows must sum to 1: one sums to {worst:.4g}. Pass probabilities, not logits.")
    return probs
