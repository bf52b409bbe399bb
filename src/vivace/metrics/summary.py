"""All metrics of a split as one frozen value, from probabilities and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivace.metrics.accuracy import (
    ClassMetrics,
    balanced_accuracy,
    confusion_matrix,
    macro_f1,
    per_class,
    topk_accuracy,
)
from vivace.metrics.calibration import expected_calibration_error, negative_log_likelihood
from vivace.statistics.proportions import wilson_interval

__all__ = ["Metrics", "evaluate_probs"]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Metrics of a classifier on labelled images. `_low` and `_high` are Wilson's 95 % interval."""

    num_images: int
    top1: float
    top1_low: float
    top1_high: float
    top5: float
    """Top-min(5, K) accuracy; always 1 for up to five classes."""
    top5_low: float
    top5_high: float
    macro_f1: float
    """Mean F1 of the classes, each of the same weight."""
    balanced_accuracy: float
    """Mean recall of the classes that have images."""
    nll: float
    """Mean negative log-likelihood, nats: the cross-entropy loss."""
    ece: float
    """Expected calibration error over 15 bins, in [0, 1]."""
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts; rows are the true classes, columns the predicted classes."""

    def summary(self) -> dict[str, Any]:
        """The scalar metrics, without the tables."""
        names = (
            *("num_images", "top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high"),
            *("macro_f1", "balanced_accuracy", "nll", "ece"),
        )
        return {name: getattr(self, name) for name in names}


def evaluate_probs(probs_NK: np.ndarray, labels_N: np.ndarray, classes: Sequence[str]) -> Metrics:
    """The metrics of probs_NK (float, rows sum to 1) against labels_N (int64 in [0, K)).

    Raises ValueError if there are no images, or if the sizes of the arguments differ.
    """
    num_images, num_classes = probs_NK.shape
    if num_images == 0:
        raise ValueError("there are no images to evaluate on")
    if len(labels_N) != num_images or len(classes) != num_classes:
        raise ValueError(
            f"sizes differ: {num_images} × {num_classes} probabilities, {len(labels_N)} labels, {len(classes)} classes"
        )
    top1 = topk_accuracy(probs_NK, labels_N, k=1)
    top5 = topk_accuracy(probs_NK, labels_N, k=min(5, num_classes))
    low, high = wilson_interval(round(top1 * num_images), num_images)
    low5, high5 = wilson_interval(round(top5 * num_images), num_images)
    confusion = confusion_matrix(probs_NK.argmax(1), labels_N, num_classes)
    return Metrics(
        num_images=num_images,
        top1=top1,
        top1_low=low,
        top1_high=high,
        top5=top5,
        top5_low=low5,
        top5_high=high5,
        macro_f1=macro_f1(confusion),
        balanced_accuracy=balanced_accuracy(confusion),
        nll=negative_log_likelihood(probs_NK, labels_N),
        ece=expected_calibration_error(probs_NK, labels_N),
        per_class=per_class(confusion, tuple(classes)),
        confusion=tuple(tuple(int(value) for value in row) for row in confusion),
    )
