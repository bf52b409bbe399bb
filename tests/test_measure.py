"""Intervals that hold the truth as often as they say, and timing in alternation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vivace import measure
from vivace.measure import bootstrap_ratio, compare, student_mean, student_ratio


def test_student_s_interval_of_three_values() -> None:
    # standard deviation 1, t of two degrees of freedom 4.303
    assert student_mean([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert student_mean([5.0, 5.0]) == (5.0, 5.0, 5.0)


def test_student_s_ratio_is_a_geometric_mean_and_turns_round_with_its_sides() -> None:
    ratio, low, high = student_ratio([1.0, 2.0, 4.0])
    assert ratio == pytest.approx(2.0)
    assert student_ratio([1.0, 0.5, 0.25]) == pytest.approx((1 / ratio, 1 / high, 1 / low))
    assert student_ratio([1.5] * 4) == pytest.approx((1.5, 1.5, 1.5))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_student_s_interval_holds_the_truth_in_95_of_100_cases(count: int) -> None:
    draws = np.random.default_rng(count).normal(1.0, 0.3, (2000, count))
    held = np.mean([low < 1.0 < high for _, low, high in map(student_mean, draws)])
    # 2,000 draws: the share's standard error is half a point
    assert abs(held - 0.95) < 0.02


def test_a_bootstrap_resamples_pairs_so_that_what_slowed_both_cancels() -> None:
    slowed = np.random.default_rng(0).uniform(1, 10, 20)
    ratio, low, high = bootstrap_ratio(3 * slowed, slowed)
    assert (ratio, low, high) == pytest.approx((3, 3, 3))
    assert bootstrap_ratio([2, 4, 3], [1, 1, 1], seed=1) == bootstrap_ratio([2, 4, 3], [1, 1, 1], seed=1)


def test_both_sides_take_turns_and_the_order_turns_round(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(measure, "time_call", lambda call, device: call())

    def side(name: str, ms: float) -> float:
        calls.append(name)
        return ms

    result = compare(lambda: side("A", 6.0), lambda: side("B", 2.0), torch.device("cpu"), num_pairs=3, num_warmup=1)
    assert "".join(calls) == "AB" + "AB" + "BA" + "AB"
    assert result.baseline_ms == (6.0, 6.0, 6.0)
    assert result.candidate_ms == (2.0, 2.0, 2.0)
    assert (result.ratio, result.faster) == (3.0, True)
