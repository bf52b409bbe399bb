"""Intervals of ratios and gains have their nominal coverage."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from vivace.statistics import intervals
from vivace.statistics.intervals import process_ratio, student_mean, student_ratio


def test_student_s_interval_of_three_values() -> None:
    # standard deviation 1, t of two degrees of freedom 4.303
    assert student_mean([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert student_mean([5.0, 5.0]) == (5.0, 5.0, 5.0)


def test_student_s_ratio_is_a_geometric_mean_and_inverts_with_its_sides() -> None:
    ratio, low, high = student_ratio([1.0, 2.0, 4.0])
    assert ratio == pytest.approx(2.0)
    assert student_ratio([1.0, 0.5, 0.25]) == pytest.approx((1 / ratio, 1 / high, 1 / low))
    assert student_ratio([1.5] * 4) == pytest.approx((1.5, 1.5, 1.5))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_student_s_interval_covers_the_truth_in_95_of_100_cases(count: int) -> None:
    draws = np.random.default_rng(count).normal(1.0, 0.3, (2000, count))
    held = np.mean([low < 1.0 < high for _, low, high in map(student_mean, draws)])
    # 2,000 draws: the standard error of the coverage is half a point
    assert abs(held - 0.95) < 0.02


def test_a_noisy_round_cancels_and_one_pair_of_processes_has_no_interval() -> None:
    slowed = np.random.default_rng(0).uniform(1, 10, (4, 5))
    processes = [[(3 * value, value) for value in rounds] for rounds in slowed]
    assert process_ratio(processes) == pytest.approx((3, 3, 3))
    # rounds of the same two processes say nothing about other processes
    assert process_ratio(processes[:1]) == (pytest.approx(3), None, None)


@pytest.mark.parametrize("count", [3, 5, 10])
@pytest.mark.parametrize(("between", "noise"), [(0.05, 0.02), (0.01, 0.03)])
def test_an_interval_over_processes_covers_the_truth_in_95_of_100_cases(
    count: int, between: float, noise: float
) -> None:
    """between, noise: standard deviations of the logarithms of a process's speed, and of a round's beside it."""
    rng = np.random.default_rng(count)
    held = 0
    for _ in range(3000):
        drift = 0.1 * rng.normal(size=(count, 5))
        logs = between * rng.normal(size=(2, count, 1)) + noise * rng.normal(size=(2, count, 5)) + drift
        before, after = np.exp(logs) * np.array([2.0, 1.0])[:, None, None]
        _, low, high = process_ratio([list(zip(*pair, strict=True)) for pair in zip(before, after, strict=True)])
        assert low is not None
        assert high is not None
        held += low <= 2.0 <= high
    # 3,000 draws: the standard error is 0.4 points
    assert 0.93 <= held / 3000 <= 0.97


def test_all_intervals_of_timings_come_from_one_place() -> None:
    root = Path(intervals.__file__).parents[3]
    others = [
        path.name
        for folder in (root / "src", root / "benchmarks")
        for path in folder.rglob("*.py")
        if path != Path(intervals.__file__) and re.search(r"bootstrap_|0\.025", path.read_text("utf-8"))
    ]
    assert others == []
