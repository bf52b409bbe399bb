"""What a network answered to labelled images, and what a person wants to look at of it (no torch here).

Shape suffixes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = [
    "Bin",
    "Heat",
    "Measured",
    "confused_pairs",
    "label_reliability",
    "mistaken_classes",
    "reliability",
    "uncalibrated",
    "worst_labels",
    "worst_mistakes",
]

NUM_BINS = 15
SMALLEST_PROBABILITY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The images of a split with a network's answers."""

    split: str
    """val, test, all; or "held out": images that were not trained on."""
    probs_NK: np.ndarray
    labels_N: np.ndarray
    """int64; of sets of labels not used."""
    names: Sequence[str]
    """Of the N images, relative to their data."""
    images: Callable[[np.ndarray], np.ndarray]
    """Positions int64 [n] → the pixels that the network saw, uint8 [n, H, W, C]."""
    hits_NK: np.ndarray | None = None
    """bool: the labels of each image; None: images have one class."""
    sizes: Callable[[], np.ndarray | None] | None = None
    """Gives width and height of the files, px, int64 [N, 2], 0 where they are not known; None: there are no files."""


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Heat maps of mistakes: the images under the colours of what speaks for the predicted class."""

    pictures: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Position → uint8 [H, W, 3]."""
    method: str = ""
    layer: str = ""
    """The network's layer that they are of; of a transformer how many attention layers."""
    side: int = 0
    """Its places on a side: a map is no finer."""
    missing: str | None = None
    """Why there are none; None: there are, or nothing is wrong."""


@dataclass(frozen=True)
class Bin:
    """The answers with a confidence in (low, high]."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean; NaN without answers, as `accuracy`."""
    accuracy: float
    """Fraction of them that is right."""


def reliability(probs_NK: np.ndarray, labels_N: np.ndarray, *, num_bins: int = NUM_BINS) -> tuple[Bin, ...]:
    """The bins that the expected calibration error is computed from, by the highest probability.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    return _bins(probs_NK.max(1), probs_NK.argmax(1) == labels_N, num_bins)


def label_reliability(probs_NK: np.ndarray, hits_NK: np.ndarray, *, num_bins: int = NUM_BINS) -> tuple[Bin, ...]:
    """The same of sets of labels: probability and frequency of all pairs of an image and a label."""
    return _bins(probs_NK.reshape(-1), hits_NK.reshape(-1), num_bins)


def _bins(confidence_n: np.ndarray, right_n: np.ndarray, num_bins: int) -> tuple[Bin, ...]:
    place = np.clip(np.ceil(confidence_n.astype(np.float64) * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        means = np.bincount(place, weights=confidence_n, minlength=num_bins) / counts
        rates = np.bincount(place, weights=right_n, minlength=num_bins) / counts
    edges = np.arange(num_bins + 1) / num_bins
    rows = zip(edges[:-1], edges[1:], counts, means, rates, strict=True)
    return tuple(Bin(float(a), float(b), int(count), float(mean), float(rate)) for a, b, count, mean, rate in rows)


def uncalibrated(probs_NK: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities before the logits were divided by a temperature > 0, float64 [N, K].

    softmax(z) from p = softmax(z / T): p to the power of T, normalized. A p that underflowed counts as 1e-30.
    """
    logits = temperature * np.log(np.maximum(probs_NK.astype(np.float64), SMALLEST_PROBABILITY))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    before: np.ndarray = powers / powers.sum(1, keepdims=True)
    return before


def worst_mistakes(probs_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Positions of the wrongly classified images, int64, the most confident ones first."""
    predicted = probs_NK.argmax(1)
    wrong = np.flatnonzero(predicted != labels_N)
    return wrong[np.argsort(-probs_NK[wrong, predicted[wrong]], kind="stable")]


def confused_pairs(probs_NK: np.ndarray, labels_N: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """(true class, predicted class) → positions of these images, int64, for all pairs that occur, right ones included.

    Of mistakes the most confident ones come first, of what is right the least confident ones.
    """
    predicted = probs_NK.argmax(1)
    confidence = probs_NK[np.arange(len(probs_NK)), predicted]
    order = np.argsort(np.where(predicted == labels_N, confidence, -confidence), kind="stable")
    keys = labels_N[order].astype(np.int64) * probs_NK.shape[1] + predicted[order]
    grouped = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[grouped], return_index=True)
    rows = np.split(order[grouped], starts[1:])
    return {divmod(int(key), probs_NK.shape[1]): group for key, group in zip(found, rows, strict=True)}


def worst_labels(
    probs_NK: np.ndarray, hits_NK: np.ndarray, thresholds_K: Sequence[float]
) -> list[tuple[int, int, float]]:
    """(image, label, confidence of what was predicted) of the most confident wrong label of an image, the worst first.

    A label is predicted at p >= its threshold; `hits_NK` says whether it is missing or too much.
    """
    predicted_NK = probs_NK >= np.asarray(thresholds_K)
    wrong_NK = predicted_NK != hits_NK
    confidence_NK = np.where(predicted_NK, probs_NK, 1 - probs_NK) * wrong_NK
    worst_N = confidence_NK.argmax(1)
    rows = np.flatnonzero(wrong_NK.any(1))
    rows = rows[np.argsort(-confidence_NK[rows, worst_N[rows]], kind="stable")]
    return [(int(row), int(worst_N[row]), float(confidence_NK[row, worst_N[row]])) for row in rows]


def mistaken_classes(measured: Measured, thresholds_K: Sequence[float], count: int) -> dict[int, int]:
    """position → class whose heat map tells of a mistake, of the `count` most confident mistakes, the worst first.

    It is the predicted class; of sets of labels the label that is missing or too much.
    """
    if measured.hits_NK is not None:
        found = worst_labels(measured.probs_NK, measured.hits_NK, thresholds_K)[:count]
        return {row: label for row, label, _ in found}
    rows = worst_mistakes(measured.probs_NK, measured.labels_N)[:count]
    return {int(row): int(measured.probs_NK[row].argmax()) for row in rows}
