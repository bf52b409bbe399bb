"""The metrics of a split are consistent."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vivace.metrics.summary import evaluate_probs
from vivace.statistics.proportions import wilson_interval


def probabilities(num_images: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, num_images)
    raw = rng.random((num_images, num_classes)) + 0.3 * np.eye(num_classes)[labels]
    return (raw / raw.sum(1, keepdims=True)).astype(np.float32), labels


def test_accuracy_confusion_and_support_agree() -> None:
    probs, labels = probabilities(300, 8)
    metrics = evaluate_probs(probs, labels, "abcdefgh")
    confusion = np.asarray(metrics.confusion)
    assert metrics.num_images == confusion.sum() == 300
    assert metrics.top1 == pytest.approx(np.trace(confusion) / 300)
    assert [row.support for row in metrics.per_class] == np.bincount(labels, minlength=8).tolist()
    right = round(metrics.top1 * 300)
    assert (metrics.top1_low, metrics.top1_high) == wilson_interval(right, 300)
    assert metrics.top1 <= metrics.top5 <= 1
    assert metrics.top5_low < metrics.top5 < metrics.top5_high


def test_top5_of_few_classes_is_top_of_all() -> None:
    assert evaluate_probs(*probabilities(50, 3), "abc").top5 == 1
    assert evaluate_probs(*probabilities(50, 6), "abcdef").top5 < 1


def test_single_figures_are_plain_values_for_json() -> None:
    summary = evaluate_probs(*probabilities(20, 3), "abc").summary()
    assert json.loads(json.dumps(summary)) == summary
    assert {"top1", "top1_low", "top1_high", "top5", "nll", "ece", "num_images"} <= set(summary)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no images to evaluate on"):
        evaluate_probs(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), "abc")


def test_sizes_that_differ_are_refused() -> None:
    probs, labels = probabilities(20, 3)
    with pytest.raises(ValueError, match="sizes differ: 20 × 3 probabilities, 19 labels, 3 classes"):
        evaluate_probs(probs, labels[:-1], "abc")
    with pytest.raises(ValueError, match="sizes differ: 20 × 3 probabilities, 20 labels, 2 classes"):
        evaluate_probs(probs, labels, "ab")
