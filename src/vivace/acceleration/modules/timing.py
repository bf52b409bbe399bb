"""Times calls of several programs in this process, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from vivace.measure import TimeUp, time_call
from vivace.statistics.intervals import Ratio, student_ratio

__all__ = ["per_call_ms", "ratio_of", "rounds"]

# a round is as long as this at least, or one call: timers and interrupts matter less
ROUND_MS = 30.0
MAX_CALLS = 200


def rounds(
    functions: Sequence[Callable[[], object]],
    device: torch.device,
    *,
    num_rounds: int,
    round_ms: float = ROUND_MS,
    stop: Callable[[], bool] = lambda: False,
    hopeless: float = float("inf"),
) -> np.ndarray:
    """Milliseconds per call, [rounds, functions], after two calls of each; in every second round in reverse order.

    Each function is called as often per round as it needs for `round_ms`. stop: asked before each round: there
    are fewer then. hopeless: where the last function takes that many times as long as the first one, the calls before
    the rounds are all. Raises TimeUp if there are fewer than two by then.
    """
    first = [min(time_call(function, device) for _ in range(2)) for function in functions]
    if first[-1] > hopeless * first[0]:
        return np.array([first, first])
    num_calls = [int(min(MAX_CALLS, max(1, round_ms / max(ms, 1e-3)))) for ms in first]
    found = []
    for index in range(num_rounds):
        if stop():
            break
        row = np.zeros(len(functions))
        places = range(len(functions))
        for place in reversed(places) if index % 2 else places:
            row[place] = _several(functions[place], num_calls[place], device) / num_calls[place]
        found.append(row)
    if len(found) < 2:
        raise TimeUp
    return np.array(found)


def _several(function: Callable[[], object], num_calls: int, device: torch.device) -> float:
    def calls() -> None:
        for _ in range(num_calls):
            function()

    return time_call(calls, device)


def per_call_ms(times_RF: np.ndarray, place: int) -> float:
    """Median time of a call of one function, ms."""
    return float(np.median(times_RF[:, place]))


def ratio_of(times_RF: np.ndarray, baseline: int, candidate: int) -> Ratio:
    """(speedup, low, high) of a candidate over a baseline, with Student's 95 % interval over the rounds."""
    return student_ratio(list(times_RF[:, baseline] / times_RF[:, candidate]))
