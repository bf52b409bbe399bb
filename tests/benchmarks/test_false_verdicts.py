"""`benchmarks/false_verdicts.py`: what counts as a false verdict, and what is spread of processes and what is noise."""

from __future__ import annotations

import numpy as np
import pytest

from false_verdicts import process_spread, verdicts
from vivace.timing.interleaved import Timings, ratio_of


def test_a_verdict_is_false_in_either_direction_and_needs_the_whole_interval() -> None:
    found = verdicts([(1.03, 1.025, 1.035), (0.97, 0.965, 0.975), (1.03, 1.01, 1.05), (1.0, 0.99, 1.01)])
    assert (found["two_percent_faster"], found["faster"], found["covers"]) == (2, 3, 0.25)
    assert found["largest"] == pytest.approx(1 / 0.97 - 1)


def test_spread_of_processes_is_told_apart_from_noise() -> None:
    rng = np.random.default_rng(0)
    processes = tuple(number for number in range(5) for _ in range(3))

    def timings() -> Timings:
        logs = 0.02 * rng.normal(size=5)[list(processes)] + 0.01 * rng.normal(size=15)
        return Timings(
            name="",
            blocks_ms=tuple((float(value),) for value in np.exp(logs)),
            processes=processes,
            cold_start_seconds=1.0,
            peak_memory_bytes=1,
        )

    pairs = [(timings(), timings()) for _ in range(300)]
    between, within = process_spread(pairs)
    assert between == pytest.approx(0.02, rel=0.1)
    assert within == pytest.approx(0.01 / 3**0.5, rel=0.1)
    assert verdicts([ratio_of(first, second) for first, second in pairs])["covers"] == pytest.approx(0.95, abs=0.03)
