"""Calibration of probabilities. Shape suffixes: B images, K classes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["best_temperature", "expected_calibration_error", "negative_log_likelihood"]

# the float32 probabilities of a thousand classes sum to 1 well within this
ROW_SUM_TOLERANCE = 1e-3
SMALLEST_PROBABILITY = 1e-12
# a network that would need a temperature beyond these has another problem
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.02, 50.0
NUM_NEWTON_STEPS = 30


def expected_calibration_error(probs_BK: ArrayLike, labels_B: ArrayLike, *, num_bins: int = 15) -> float:
    """Mean |confidence - accuracy| over equal-width bins of the highest probability, in [0, 1].

    probs_BK: float, rows sum to 1. labels_B: int64 in [0, K).
    Raises ValueError if a row does not sum to 1 (were logits passed?) or holds NaN.
    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    probs, labels = _checked(probs_BK), np.asarray(labels_B)
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    # bins are open on the left, so a confidence of exactly 1 belongs to the last one
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    gaps = np.abs(
        np.bincount(bins, weights=confidence, minlength=num_bins)
        - np.bincount(bins, weights=correct, minlength=num_bins)
    )
    return float(gaps.sum() / max(counts.sum(), 1))


def negative_log_likelihood(probs_BK: ArrayLike, labels_B: ArrayLike) -> float:
    """Mean -log of the probability of the true class, nats, >= 0; a probability of 0 counts as 1e-12.

    probs_BK: float, rows sum to 1. labels_B: int64 in [0, K).
    Raises ValueError if a row does not sum to 1 or holds NaN.
    """
    probs, labels = _checked(probs_BK), np.asarray(labels_B)
    own = np.take_along_axis(probs, labels[:, None], axis=1)
    return float(-np.log(np.clip(own, SMALLEST_PROBABILITY, 1)).mean())


def best_temperature(logits_NK: ArrayLike, labels_N: ArrayLike, *, deviation: float = math.inf) -> float:
    """The temperature T, in [0.02, 50], that maximizes the likelihood of the labels under softmax(logits / T).

    T < 1 means that the network was underconfident, T > 1 that it was overconfident. Labels are smoothed so that N
    correct predictions count as N + 1 of N + 2 (Platt 1999); otherwise T would become 0 if all are correct.
    deviation: of a normal prior on ln T with the mean 0, > 0, for few images: they move T less. Infinite: no prior.
    logits_NK: float, K >= 2. labels_N: int64 in [0, K).
    Raises ValueError if there are no images or a logit is not finite.
    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    logits, labels = np.asarray(logits_NK, dtype=np.float64), np.asarray(labels_N)
    num_images, num_classes = logits.shape
    if num_images == 0:
        raise ValueError("there are no images to find a temperature for")
    if not np.isfinite(logits).all():
        raise ValueError("a logit is NaN or infinite")
    logits = logits - logits.max(1, keepdims=True)
    # smoothed targets: the other classes together get 1 / (N + 2)
    smoothing = num_classes / ((num_classes - 1) * (num_images + 2))
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    wanted = float((1 - smoothing) * own.mean() + smoothing * logits.mean())
    # of the mean loss, as the images are
    prior = 1 / (num_images * deviation**2)
    # the loss is convex in the factor 1 / T: Newton's method on its derivative, with bisection as a safeguard, which
    # the prior needs where the factor is large
    low, high = 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE
    factor = 1.0
    for _ in range(NUM_NEWTON_STEPS):
        weights = np.exp(factor * logits)
        weights /= weights.sum(1, keepdims=True)
        means = (weights * logits).sum(1)
        slope = float(means.mean()) - wanted
        curvature = float(((weights * logits**2).sum(1) - means**2).mean())
        slope += math.log(factor) / factor * prior
        curvature += (1 - math.log(factor)) / factor**2 * prior
        low, high = (low, factor) if slope > 0 else (factor, high)
        step = factor - slope / curvature if curvature > 0 else high
        step = step if low < step < high else (low * high) ** 0.5
        if abs(step - factor) <= 1e-6 * factor:
            break
        factor = step
    return 1 / factor


def _checked(probs_BK: ArrayLike) -> np.ndarray:
    probs = np.asarray(probs_BK, dtype=np.float64)
    sums = probs.sum(1)
    # written so that NaN fails too
    wrong = ~(np.abs(sums - 1) <= ROW_SUM_TOLERANCE)
    if wrong.any():
        worst = float(sums[wrong.argmax()])
        raise ValueError(f"rows must sum to 1: one sums to {worst:.4g}. Pass probabilities, not logits.")
    return probs
