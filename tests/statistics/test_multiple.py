"""Exact tests and intervals are scipy's, and Holm's adjustment keeps the rate of false alarms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vivace.statistics.multiple import exact_interval, holm, hypergeometric_pvalue


@pytest.mark.parametrize(
    ("inside", "size", "marked", "total"),
    [(5, 20, 30, 100), (0, 10, 3, 50), (40, 500, 300, 10_000), (20, 20, 30, 100), (9, 10, 95, 100), (5, 10, 95, 100)],
)
def test_the_exact_test_of_a_part_against_the_rest_is_scipys(inside: int, size: int, marked: int, total: int) -> None:
    expected = stats.hypergeom.sf(inside - 1, total, marked, size)
    assert hypergeometric_pvalue(inside, size, marked, total) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("count", "total", "confidence"), [(0, 10, 0.95), (10, 10, 0.95), (3, 17, 0.999), (900, 1000, 0.9995)]
)
def test_the_interval_is_that_of_clopper_and_pearson(count: int, total: int, confidence: float) -> None:
    expected = stats.binomtest(count, total).proportion_ci(confidence, "exact")
    assert exact_interval(count, total, confidence=confidence) == pytest.approx(tuple(expected), abs=1e-8)


def test_holms_adjustment_takes_the_smallest_for_all_and_the_largest_for_itself() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.2])).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.2])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    assert holm(np.zeros(0)).tolist() == []


def test_of_tests_of_nothing_few_families_have_a_finding() -> None:
    families = np.random.default_rng(0).random((4000, 20))
    alarms = sum((holm(family) <= 0.05).any() for family in families)
    # 5 % is what Holm's adjustment gives for independent tests: ± 4 standard errors
    assert 4000 * 0.036 < alarms < 4000 * 0.064


@pytest.mark.parametrize("counts", [(5, 4, 5, 10), (0, 8, 5, 10), (1, 2, 3, 2)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="impossible counts"):
        hypergeometric_pvalue(*counts)
    with pytest.raises(ValueError, match="impossible counts"):
        exact_interval(5, 4)
    with pytest.raises(ValueError, match="p-values lie"):
        holm(np.array([0.5, np.nan]))
