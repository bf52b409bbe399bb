"""Calibration agrees with scikit-learn and with its definition, bin by bin."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss

from vivace.metrics.calibration import expected_calibration_error, negative_log_likelihood


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.fixture
def predicted() -> tuple[np.ndarray, np.ndarray]:
    """probs_BK of 6 classes and labels_B."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 500)
    return softmax(2 * rng.normal(size=(500, 6)) + 2 * np.eye(6)[labels]), labels


def test_nll_agrees_with_scikit_learn(predicted: tuple[np.ndarray, np.ndarray]) -> None:
    probs, labels = predicted
    assert negative_log_likelihood(probs, labels) == pytest.approx(log_loss(labels, probs), rel=1e-9)


def test_a_probability_of_zero_costs_much_but_not_everything() -> None:
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(-np.log(1e-12))


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_ece_is_what_its_definition_says(predicted: tuple[np.ndarray, np.ndarray], num_bins: int) -> None:
    probs, labels = predicted
    confidence, right = probs.max(1), probs.argmax(1) == labels
    expected = 0.0
    for index in range(num_bins):
        inside = (confidence > index / num_bins) & (confidence <= (index + 1) / num_bins)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(probs, labels, num_bins=num_bins) == pytest.approx(expected, abs=1e-12)


def test_ece_of_the_certain_is_their_share_of_errors() -> None:
    certain = np.eye(2)[[0, 0, 1, 1]]
    assert expected_calibration_error(certain, [0, 0, 1, 1]) == 0
    assert expected_calibration_error(certain, [0, 0, 1, 0]) == 0.25


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    # alone in (0, 0.5] and wrong, alone in (0.5, 1] and right; in one bin the two would all but cancel
    assert expected_calibration_error([[0.5, 0.5], [0.75, 0.25]], [1, 0], num_bins=2) == pytest.approx(0.375)


def test_ece_does_not_hang_on_the_order(predicted: tuple[np.ndarray, np.ndarray]) -> None:
    probs, labels = predicted
    order = np.random.default_rng(1).permutation(len(labels))
    again = expected_calibration_error(probs[order], labels[order])
    assert again == pytest.approx(expected_calibration_error(probs, labels), abs=1e-12)


@pytest.mark.parametrize("metric", [expected_calibration_error, negative_log_likelihood])
def test_logits_are_refused(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match=r"rows must sum to 1: one sums to 4\. Pass probabilities, not logits\."):
        metric(np.array([[0.5, 0.5], [3.0, 1.0]]), np.array([0, 1]))


@pytest.mark.parametrize("metric", [expected_calibration_error, negative_log_likelihood])
def test_nan_is_refused(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="one sums to nan"):
        metric(np.array([[0.5, 0.5], [np.nan, 1.0]]), np.array([0, 1]))


def test_half_precision_sums_are_close_enough(predicted: tuple[np.ndarray, np.ndarray]) -> None:
    probs, labels = predicted
    assert expected_calibration_error(probs.astype(np.float16), labels) > 0
