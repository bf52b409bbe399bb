"""Calibration of each label on its own: the probability of a label is sigmoid(scale · logit + shift).

N images, K labels.
"""

from __future__ import annotations

import numpy as np

from vivace.metrics.calibration import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE

__all__ = ["MIN_EXAMPLES", "best_scales"]

# a label with fewer images, or with fewer without it, gets what is best for all labels together
MIN_EXAMPLES = 10
NUM_STEPS = 50
# of the log-likelihood's curvature: keeps a step finite where all logits are equal
DAMPING = 1e-9


def best_scales(logits_NK: np.ndarray, hits_NK: np.ndarray, *, shifts: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(scale_K > 0, shift_K) with the highest likelihood of the labels under sigmoid(scale · logit + shift).

    Platt's method (1999) with his smoothed targets: (n₊ + 1) / (n₊ + 2) for images that have the label, 1 / (n₋ + 2)
    for the others. Labels with fewer than 10 of either get one scale, fitted to all labels together, and no shift; so
    do those whose own scale would be outside [1/50, 50]. The order of the images by a label's probability stays.
    shifts: False: scales alone, for a network that can't shift its logits. logits_NK: float, finite. hits_NK: bool.
    """
    logits, hits = np.asarray(logits_NK, dtype=np.float64), np.asarray(hits_NK, dtype=bool)
    low, high = 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE
    shared, _ = _fitted(logits.reshape(-1), hits.reshape(-1), shifts=False)
    shared = min(max(shared, low), high)
    scales, offsets = np.full(logits.shape[1], shared), np.zeros(logits.shape[1])
    counts = hits.sum(0)
    for label in np.flatnonzero(np.minimum(counts, len(hits) - counts) >= MIN_EXAMPLES):
        scale, shift = _fitted(logits[:, label], hits[:, label], shifts=shifts)
        if low <= scale <= high and np.isfinite(shift):
            scales[label], offsets[label] = scale, shift
    return scales, offsets


def _fitted(logits_n: np.ndarray, hits_n: np.ndarray, *, shifts: bool) -> tuple[float, float]:
    """(scale, shift) by Newton's method with halved steps: the loss is convex in both."""
    positive = int(hits_n.sum())
    targets = np.where(hits_n, (positive + 1) / (positive + 2), 1 / (len(hits_n) - positive + 2))
    columns = np.stack([logits_n, np.ones_like(logits_n)][: 1 + shifts], 1)
    weights = np.array([1.0, 0.0][: 1 + shifts])
    loss = _loss(columns @ weights, targets)
    for _ in range(NUM_STEPS):
        probs = 1 / (1 + np.exp(-np.clip(columns @ weights, -500, 500)))
        gradient = columns.T @ (probs - targets) / len(targets)
        curvature = (columns * (probs * (1 - probs))[:, None]).T @ columns / len(targets)
        step = np.linalg.solve(curvature + DAMPING * np.eye(len(weights)), gradient)
        size = 1.0
        while size > 1e-6 and not _loss(columns @ (weights - size * step), targets) <= loss:
            size /= 2
        weights = weights - size * step
        before, loss = loss, _loss(columns @ weights, targets)
        if before - loss <= 1e-12:
            break
    return float(weights[0]), float(weights[1]) if shifts else 0.0


def _loss(logits_n: np.ndarray, targets_n: np.ndarray) -> float:
    return float((np.logaddexp(0, logits_n) - targets_n * logits_n).mean())
