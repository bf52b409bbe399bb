"""Timing several functions interleaved: as often as each needs, and no longer than is of use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vivace.acceleration.modules import timing
from vivace.measure import TimeUp

CPU = torch.device("cpu")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called; a call of "a" takes 10 ms, of "b" 50 ms, by a clock of its own."""
    found: list[str] = []

    def timed(function: Callable[[], object], device: torch.device) -> float:
        before = len(found)
        function()
        return sum({"a": 10.0, "b": 50.0}[name] for name in found[before:])

    monkeypatch.setattr(timing, "time_call", timed)
    return found


def test_each_function_is_called_as_often_as_it_needs(calls: list[str]) -> None:
    times = timing.rounds([lambda: calls.append("a"), lambda: calls.append("b")], CPU, num_rounds=4, round_ms=30.0)
    assert "".join(calls) == "aabb" + "aaab" + "baaa" + "aaab" + "baaa"
    assert times.tolist() == [[10, 50]] * 4
    assert (timing.per_call_ms(times, 1), timing.ratio_of(times, 1, 0)[0]) == (50, pytest.approx(5))


def test_what_is_hopeless_is_not_timed_for_longer(calls: list[str]) -> None:
    functions = [lambda: calls.append("a"), lambda: calls.append("b")]
    assert timing.rounds(functions, CPU, num_rounds=4, hopeless=3.0).tolist() == [[10, 50]] * 2
    assert len(calls) == 4


def test_without_time_for_two_rounds_there_is_no_result(calls: list[str]) -> None:
    with pytest.raises(TimeUp):
        timing.rounds([lambda: calls.append("a")] * 2, CPU, num_rounds=4, stop=lambda: True)
