"""Abstaining: the error among what is answered is below the risk, as often as is said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from vivace.statistics.selective import Level, certified_level, fewest_images, levels_of, risk_bound


def sample(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and whether the answers are right: as often as they say."""
    confidence = rng.beta(4, 1, count)
    return confidence, rng.random(count) < confidence


def level(confidence: float, answered: int, errors: int) -> Level:
    return Level(
        confidence=confidence, expected_answered=answered, expected_errors=errors, answered=answered, errors=errors
    )


def test_the_error_exceeds_the_risk_in_one_of_20_splits_at_most() -> None:
    rng, risk, wrong, answered = np.random.default_rng(0), 0.1, 0, []
    grid = np.linspace(0, 1, 2001)
    # of Beta(4, 1) the mean above a confidence, exactly
    error = 1 - 0.8 * (1 - grid[:-1] ** 5) / (1 - grid[:-1] ** 4)
    for _ in range(400):
        found = certified_level(levels_of(*sample(rng, 150), *sample(rng, 600)), risk)
        if found is not None:
            wrong += np.interp(found.confidence, grid[:-1], error) > risk
            answered.append(1 - found.confidence**4)
    # 400 · 0.05 = 20 are allowed; 34 once in 1,000 times
    assert wrong <= 34
    # not by answering nothing: 66 % could be answered
    assert len(answered) > 320
    assert np.mean(answered) > 0.4


def test_the_best_level_by_the_calibration_images_alone_would_exceed_it_often() -> None:
    """So the test above would fail if the tests of `certified_level` were left out."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(200):
        levels = levels_of(*sample(rng, 150), *sample(rng, 600))
        best = max((one for one in levels if one.errors <= 0.1 * one.answered), key=lambda one: one.answered)
        wrong += 1 - 0.8 * (1 - best.confidence**5) / (1 - best.confidence**4) > 0.1
    assert wrong > 60


def test_levels_count_what_they_say() -> None:
    rng = np.random.default_rng(2)
    (few, few_right), (confidence, right) = sample(rng, 40), sample(rng, 100)
    levels = levels_of(few, few_right, confidence, right)
    assert [one.confidence for one in levels] == sorted((one.confidence for one in levels), reverse=True)
    assert (levels[-1].confidence, levels[-1].answered, levels[-1].errors) == (0, 100, (~right).sum())
    for one in levels:
        assert one.answered == (confidence >= one.confidence).sum()
        assert one.errors == (~right[confidence >= one.confidence]).sum()
        chosen = few >= one.confidence
        assert one.expected_answered == pytest.approx(chosen.sum() * 2.5)
        assert one.expected_errors == pytest.approx((~few_right[chosen]).sum() * 2.5)


def test_the_tests_go_on_to_levels_that_answer_more_until_the_first_that_fails() -> None:
    levels = [level(0.9, 100, 0), level(0.8, 200, 1), level(0.5, 300, 60), level(0.0, 400, 12)]
    found = certified_level(levels, 0.05)
    assert found is levels[1]
    assert certified_level(levels, 0.001) is None


def test_bounds_agree_with_scipy() -> None:
    for errors, answered in [(0, 59), (3, 100), (50, 51), (7, 7)]:
        expected = binomtest(errors, answered, alternative="less").proportion_ci(0.95, method="exact").high
        assert risk_bound(errors, answered) == pytest.approx(expected, abs=1e-9)
    assert fewest_images(0.05) == 59
    assert risk_bound(0, 59) <= 0.05 < risk_bound(0, 58)


def test_what_is_impossible_is_refused() -> None:
    none = np.array([])
    with pytest.raises(ValueError, match="got 0 to choose"):
        levels_of(none, none, none, none)
    with pytest.raises(ValueError, match="0 levels and a risk of 0"):
        certified_level([], 0.05)
