"""What a person looks at of a network's answers: reliability, the worst mistakes, confused pairs."""

from __future__ import annotations

import numpy as np
import pytest

from vivace.metrics.accuracy import confusion_matrix
from vivace.metrics.calibration import expected_calibration_error
from vivace.metrics.measured import (
    confused_pairs,
    label_reliability,
    reliability,
    uncalibrated,
    worst_labels,
    worst_mistakes,
)


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    powers = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 3, (400, 5)), rng.integers(0, 5, 400)


def test_the_bins_give_the_calibration_error_that_is_reported(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probs, labels = softmax(answers[0]), answers[1]
    bins = [row for row in reliability(probs, labels) if row.count]
    error = sum(row.count * abs(row.confidence - row.accuracy) for row in bins) / len(labels)
    assert error == pytest.approx(expected_calibration_error(probs, labels), abs=1e-12)
    assert sum(row.count for row in bins) == len(labels)
    assert all(row.low < row.confidence <= row.high for row in bins)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_probabilities_before_calibration_are_those_of_the_logits(
    answers: tuple[np.ndarray, np.ndarray], temperature: float
) -> None:
    after = softmax(answers[0] / temperature)
    np.testing.assert_allclose(uncalibrated(after, temperature), softmax(answers[0]), rtol=1e-7, atol=1e-12)


def test_a_probability_that_underflowed_stays_a_number() -> None:
    before = uncalibrated(np.array([[1.0, 0.0, 0.0]], dtype=np.float32), 0.5)
    assert np.isfinite(before).all()
    assert before.sum() == pytest.approx(1)


def test_pairs_are_the_cells_of_the_confusion_matrix(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probs, labels = softmax(answers[0]), answers[1]
    matrix = np.zeros((5, 5), dtype=np.int64)
    for (true, predicted), rows in confused_pairs(probs, labels).items():
        matrix[true, predicted] = len(rows)
        assert (labels[rows] == true).all()
        sure = probs[rows].max(1)
        # what to look at first: the surest mistakes, and the right answers that were least sure
        assert (np.diff(sure) >= 0).all() if true == predicted else (np.diff(sure) <= 0).all()
    np.testing.assert_array_equal(matrix, confusion_matrix(probs.argmax(1), labels, 5))


def test_the_surest_mistake_comes_first(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probs, labels = softmax(answers[0]), answers[1]
    rows = worst_mistakes(probs, labels)
    assert len(rows) == (probs.argmax(1) != labels).sum()
    assert (np.diff(probs[rows].max(1)) <= 0).all()


def test_of_sets_of_labels_the_surest_wrong_label_of_an_image_is_named() -> None:
    probs = np.array([[0.9, 0.2], [0.6, 0.1], [0.1, 0.8]])
    hits = np.array([[False, True], [True, False], [False, False]])
    # 0.9 of a label that is not there, 0.8 of one in the third; the second image is right
    assert worst_labels(probs, hits, (0.5, 0.5)) == [(0, 0, 0.9), (2, 1, 0.8)]
    bins = [row for row in label_reliability(probs, hits, num_bins=2) if row.count]
    assert [(row.count, row.accuracy) for row in bins] == [(3, pytest.approx(1 / 3)), (3, pytest.approx(1 / 3))]
