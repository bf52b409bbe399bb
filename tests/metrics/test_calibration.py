"""Calibration agrees with scikit-learn and with its definition, bin by bin."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from vivace.metrics.calibration import best_temperature, expected_calibration_error, negative_log_likelihood


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


def test_ece_at_full_confidence_is_the_error_rate() -> None:
    certain = np.eye(2)[[0, 0, 1, 1]]
    assert expected_calibration_error(certain, [0, 0, 1, 1]) == 0
    assert expected_calibration_error(certain, [0, 0, 1, 0]) == 0.25


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    # one is wrong and in (0, 0.5], one is correct and in (0.5, 1]; in a single bin they would almost cancel
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


@pytest.mark.parametrize("sharpness", [0.05, 0.5, 1.0, 3.0, 20.0])
def test_the_best_temperature_is_where_the_loss_is_least(sharpness: float) -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 6, 2000)
    logits = sharpness * (rng.normal(size=(2000, 6)) + 2 * np.eye(6)[labels])
    found = best_temperature(logits.astype(np.float32), labels)
    least = minimize_scalar(
        lambda log_t: negative_log_likelihood(softmax(logits / np.exp(log_t)), labels), bounds=(-4, 4), method="bounded"
    )
    # smoothing by one image in 2,000 moves it a little
    assert found == pytest.approx(np.exp(least.x), rel=0.02)


def test_the_temperature_undoes_underconfidence() -> None:
    rng = np.random.default_rng(3)
    logits = 3 * rng.normal(size=(20_000, 10))
    labels = np.array([rng.choice(10, p=p) for p in softmax(logits)])
    assert best_temperature(logits, labels) == pytest.approx(1, rel=0.03)
    assert best_temperature(0.2 * logits, labels) == pytest.approx(0.2, rel=0.03)
    found = best_temperature(0.2 * logits, labels)
    assert expected_calibration_error(softmax(0.2 * logits / found), labels) < 0.015
    assert expected_calibration_error(softmax(0.2 * logits), labels) > 0.3


def test_no_error_among_a_hundred_images_is_no_certainty() -> None:
    logits = 4 * np.eye(3)[np.arange(100) % 3]
    found = best_temperature(logits, np.arange(100) % 3)
    sure = softmax(logits / found).max(1)
    # the next prediction is correct with probability 101 / 102
    assert sure == pytest.approx(101 / 102, abs=1e-3)


def test_a_temperature_has_bounds_and_refuses_non_finite_logits() -> None:
    assert best_temperature(1e-6 * np.eye(2)[[0, 1] * 50], [0, 1] * 50) == pytest.approx(0.02, rel=1e-3)
    wrong = best_temperature(np.eye(2)[[0, 1] * 50], [1, 0] * 50)
    assert wrong == pytest.approx(50, rel=1e-3)
    assert best_temperature(np.zeros((100, 2)), [0, 1] * 50) > 0
    with pytest.raises(ValueError, match="no images"):
        best_temperature(np.zeros((0, 2)), [])
    with pytest.raises(ValueError, match="NaN"):
        best_temperature([[0.0, np.nan]], [0])


def test_a_prior_holds_back_few_images_and_gives_way_to_many() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 4))
    probs = np.exp(4 * logits) / np.exp(4 * logits).sum(1, keepdims=True)
    labels = (probs.cumsum(1) > generator.random((len(logits), 1))).argmax(1)
    few, many = slice(0, 12), slice(None)
    assert best_temperature(logits[many], labels[many], deviation=0.5) == pytest.approx(1 / 4, rel=0.03)
    plain = best_temperature(logits[few], labels[few])
    assert plain < best_temperature(logits[few], labels[few], deviation=0.5) < 1
    assert best_temperature(logits[few], labels[few], deviation=1e-3) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("deviation", [0.1, 0.5, 2.0])
def test_with_a_prior_it_is_where_the_loss_and_the_prior_are_least(deviation: float) -> None:
    generator = np.random.default_rng(1)
    logits, labels = generator.normal(size=(30, 3)), generator.integers(0, 3, 30)
    smoothing = 3 / (2 * 32)
    targets = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3

    def loss(log: np.ndarray) -> np.ndarray:
        scaled = logits[None] / np.exp(log)[:, None, None]
        log_probs = scaled - np.log(np.exp(scaled).sum(2, keepdims=True))
        return -(targets[None] * log_probs).sum((1, 2)) + log**2 / (2 * deviation**2)

    grid = np.linspace(-3.9, 3.9, 7801)
    found = best_temperature(logits, labels, deviation=deviation)
    assert np.log(found) == pytest.approx(grid[loss(grid).argmin()], abs=2e-3)
