"""Proportions: intervals and binomial tests agree with scipy."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from vivace.statistics.proportions import binomial_pvalue, wilson_interval


@pytest.mark.parametrize(("correct", "total"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 9), (9_407, 10_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_intervals_agree_with_scipy(correct: int, total: int, confidence: float) -> None:
    expected = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(correct, total, confidence=confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= correct / total <= high <= 1


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"impossible counts: {correct} of {total}"):
        wilson_interval(correct, total)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("num_images", [1, 7, 100, 5000])
def test_the_binomial_p_value_agrees_with_scipy(num_images: int, rate: float) -> None:
    for num_correct in {0, 1, num_images // 2, round(rate * num_images), num_images - 1, num_images}:
        expected = binomtest(num_correct, num_images, rate, alternative="greater").pvalue
        assert binomial_pvalue(num_correct, num_images, rate) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("num_correct", "num_images", "rate"), [(1, 0, 0.5), (-1, 3, 0.5), (4, 3, 0.5), (1, 3, 1.1)])
def test_a_p_value_of_impossible_counts_is_refused(num_correct: int, num_images: int, rate: float) -> None:
    with pytest.raises(ValueError, match="impossible counts"):
        binomial_pvalue(num_correct, num_images, rate)
