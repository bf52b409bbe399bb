"""The mistakes of a bundle on a split, the most confident first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vivace.data.caching.cache import CachedSplit

__all__ = ["NUM_MISTAKES", "Mistake", "mistakes_of_sets", "most_confident"]

NUM_MISTAKES = 36


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A misclassified image."""

    name: str
    index: int
    """Its position in the split."""
    label: str
    predicted: str
    probability: float
    """Of the predicted class."""
    heat_map: str | None = None
    """The picture of what speaks for the predicted class and for the true one; None: not asked for."""


def mistakes_of_sets(
    probs_NK: np.ndarray,
    hits_NK: np.ndarray,
    thresholds_K: Sequence[float],
    split: CachedSplit,
    rows: np.ndarray,
    classes: tuple[str, ...],
) -> tuple[Mistake, ...]:
    """The most confident mistakes, one of an image: a label that is missing or too much.

    `label` and `predicted` say which, as "cat" and "no cat"; `probability` is that of what was predicted.
    """
    predicted_NK = probs_NK >= np.asarray(thresholds_K)
    confidence_NK = np.where(predicted_NK, probs_NK, 1 - probs_NK) * (predicted_NK != hits_NK)
    worst_N = confidence_NK.argmax(1)
    wrong = np.flatnonzero((predicted_NK != hits_NK).any(1))
    order = wrong[np.argsort(-confidence_NK[wrong, worst_N[wrong]], kind="stable")][:NUM_MISTAKES]
    found = []
    for index in order:
        name = classes[worst_N[index]]
        truth, answer = (name, f"no {name}") if hits_NK[index, worst_N[index]] else (f"no {name}", name)
        found.append(
            Mistake(
                name=split.names[rows[index]],
                index=int(rows[index]),
                label=truth,
                predicted=answer,
                probability=float(confidence_NK[index, worst_N[index]]),
            )
        )
    return tuple(found)


def most_confident(
    probs_NK: np.ndarray, split: CachedSplit, rows: np.ndarray, classes: tuple[str, ...]
) -> tuple[Mistake, ...]:
    predicted, labels = probs_NK.argmax(1), split.labels_N[rows]
    wrong = np.flatnonzero(predicted != labels)
    confidence = probs_NK[wrong, predicted[wrong]]
    worst = wrong[np.argsort(-confidence, kind="stable")][:NUM_MISTAKES]
    return tuple(
        Mistake(
            name=split.names[rows[index]],
            index=int(rows[index]),
            label=classes[labels[index]],
            predicted=classes[predicted[index]],
            probability=float(probs_NK[index, predicted[index]]),
        )
        for index in worst
    )
