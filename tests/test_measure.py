"""Interleaved timing."""

from __future__ import annotations

import pytest
import torch

from vivace import measure
from vivace.measure import compare


def test_both_sides_are_interleaved_and_the_order_alternates(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(measure, "time_call", lambda call, device: call())

    def side(name: str, ms: float) -> float:
        calls.append(name)
        return ms

    result = compare(lambda: side("A", 6.0), lambda: side("B", 2.0), torch.device("cpu"), num_pairs=3, num_warmup=1)
    assert "".join(calls) == "AB" + "AB" + "BA" + "AB"
    assert result.baseline_ms == (6.0, 6.0, 6.0)
    assert result.candidate_ms == (2.0, 2.0, 2.0)
    assert (result.ratio, result.ratio_low, result.ratio_high) == pytest.approx((3.0, 3.0, 3.0))
    assert result.faster
