"""Top-k accuracy, the confusion matrix and per-class metrics.

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["ClassMetrics", "balanced_accuracy", "confusion_matrix", "macro_f1", "per_class", "topk_accuracy"]


def topk_accuracy(scores_BK: ArrayLike, labels_B: ArrayLike, *, k: int = 1) -> float:
    """Fraction of the images whose label is among the k highest scores, in [0, 1]; NaN if there are no images.

    scores_BK: logits or probabilities. labels_B: int64 in [0, K). Ties rank the class with the lower index higher, so
    that constant scores are not counted as correct; a NaN score is never correct.
    Raises ValueError for k outside [1, K] or a label outside [0, K).
    """
    scores, labels = np.asarray(scores_BK), np.asarray(labels_B)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k is out of range: got {k}, there are {scores.shape[1]} classes")
    _check_classes("label", labels, scores.shape[1])
    if len(scores) == 0:
        return float("nan")
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1])[None, :] < labels[:, None]
    rank = (scores > own).sum(1) + ((scores == own) & before).sum(1)
    # NaN compares as neither higher nor equal, so it needs a check of its own
    return float(((rank < k) & ~np.isnan(own[:, 0])).mean())


def confusion_matrix(predictions_B: ArrayLike, labels_B: ArrayLike, num_classes: int) -> np.ndarray:
    """Counts, int64 [K, K]: rows are the true classes, columns the predicted classes.

    predictions_B, labels_B: int64. Raises ValueError if one is outside [0, K).
    """
    predictions, labels = np.asarray(predictions_B, dtype=np.int64), np.asarray(labels_B, dtype=np.int64)
    _check_classes("prediction", predictions, num_classes)
    _check_classes("label", labels, num_classes)
    return np.bincount(labels * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """The metrics of one class."""

    name: str
    precision: float
    """Fraction of the images predicted as this class that belong to it; 0 if there are none."""
    recall: float
    """Fraction of this class's images that were predicted as it; 0 if there are none."""
    f1: float
    support: int
    """Number of images of this class."""


def per_class(confusion_KK: np.ndarray, classes: tuple[str, ...]) -> tuple[ClassMetrics, ...]:
    """Precision, recall, F1 and support of every class; 0/0 counts as 0. confusion_KK: from `confusion_matrix`."""
    rows = []
    for index, name in enumerate(classes):
        hits = int(confusion_KK[index, index])
        support, called = int(confusion_KK[index].sum()), int(confusion_KK[:, index].sum())
        precision = hits / called if called else 0.0
        recall = hits / support if support else 0.0
        total = precision + recall
        f1 = 2 * precision * recall / total if total else 0.0
        rows.append(ClassMetrics(name=name, precision=precision, recall=recall, f1=f1, support=support))
    return tuple(rows)


def macro_f1(confusion_KK: np.ndarray) -> float:
    """Mean F1 of the classes, all of the same weight, in [0, 1]; NaN without images.

    confusion_KK: from `confusion_matrix`. A class that neither has images nor was predicted is left out of the mean;
    one that was predicted and has none counts as 0. As scikit-learn's f1_score(average="macro").
    """
    hits_K = np.diagonal(confusion_KK)
    sums_K = confusion_KK.sum(0) + confusion_KK.sum(1)
    occurs_K = sums_K > 0
    return float((2 * hits_K[occurs_K] / sums_K[occurs_K]).mean()) if occurs_K.any() else float("nan")


def balanced_accuracy(confusion_KK: np.ndarray) -> float:
    """Mean recall of the classes that have images, in [0, 1]; NaN without images.

    confusion_KK: from `confusion_matrix`. As scikit-learn's balanced_accuracy_score: a class without images is left
    out of the mean, however often it was predicted.
    """
    support_K = confusion_KK.sum(1)
    has_images_K = support_K > 0
    hits_K = np.diagonal(confusion_KK)
    return float((hits_K[has_images_K] / support_K[has_images_K]).mean()) if has_images_K.any() else float("nan")


def _check_classes(what: str, classes_B: np.ndarray, num_classes: int) -> None:
    # a negative index would silently count from the end
    outside = classes_B[(classes_B < 0) | (classes_B >= num_classes)]
    if len(outside):
        raise ValueError(f"a {what} is out of range: got {int(outside[0])}, there are {num_classes} classes")
