"""The accuracy on images that a report was given, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from vivace.metrics.measured import Measured
from vivace.metrics.multilabel import evaluate_sets
from vivace.reporting.page.facts import Score
from vivace.statistics.proportions import wilson_interval

__all__ = ["measured_scores"]


def measured_scores(measured: Measured, classes: Sequence[str], thresholds: Sequence[float]) -> tuple[Score, ...]:
    """Top-1 accuracy; of sets of labels mAP and exact match."""
    count = len(measured.probs_NK)
    if measured.hits_NK is None:
        right = int((measured.probs_NK.argmax(1) == measured.labels_N).sum())
        low, high = wilson_interval(right, count)
        return (Score(split=measured.split, kind="top1", value=right / count, low=low, high=high, num_images=count),)
    metrics = evaluate_sets(measured.probs_NK, measured.hits_NK, classes, thresholds)
    low, high = metrics.exact_match_low, metrics.exact_match_high
    return (
        Score(split=measured.split, kind="map", value=metrics.map, low=None, high=None, num_images=count),
        Score(
            split=measured.split,
            kind="exact_match",
            value=metrics.exact_match,
            low=low,
            high=high,
            num_images=count,
        ),
    )
