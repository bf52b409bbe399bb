"""Two pieces of work in one process, timed in alternation and synchronised, with an interval on their ratio."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vivace.statistics.intervals import student_ratio

if TYPE_CHECKING:
    import torch

__all__ = [
    "Comparison",
    "TimeUp",
    "compare",
    "synchronize",
    "time_call",
]


class TimeUp(Exception):
    """A comparison was stopped before it could say anything."""


@dataclass(frozen=True)
class Comparison:
    """Two sides timed in alternation. A ratio above 1 says that `candidate` is the faster one."""

    baseline_ms: tuple[float, ...]
    candidate_ms: tuple[float, ...]
    ratio: float
    """Geometric mean over the pairs, of baseline over candidate."""
    ratio_low: float
    ratio_high: float
    """Bounds of Student's 95 % interval of `ratio`, over the pairs: of these two in this process."""

    @property
    def faster(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.ratio_low > 1.0


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it; a CPU always has."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    elif device.type == "mps":
        import torch

        torch.mps.synchronize()


def time_call(function: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call, from an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def compare(
    baseline: Callable[[], object],
    candidate: Callable[[], object],
    device: torch.device,
    *,
    num_pairs: int = 5,
    num_warmup: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Time both sides `num_pairs` times, two or more, in alternation (A B, B A, …) after a warm-up of each.

    The order turns round from pair to pair, so that a drift of the machine's speed favours neither side. stop is asked
    before each pair: once it says so, those so far are all. Raises TimeUp if they are fewer than two.
    """
    for _ in range(num_warmup):
        if stop():
            raise TimeUp
        time_call(baseline, device)
        time_call(candidate, device)
    pairs = []
    for index in range(num_pairs):
        if stop():
            if index < 2:
                raise TimeUp
            break
        if index % 2:
            second = time_call(candidate, device)
            first = time_call(baseline, device)
        else:
            first = time_call(baseline, device)
            second = time_call(candidate, device)
        pairs.append((first, second))
    baseline_ms, candidate_ms = zip(*pairs, strict=True)
    ratio, low, high = student_ratio([one / other for one, other in pairs])
    return Comparison(baseline_ms=baseline_ms, candidate_ms=candidate_ms, ratio=ratio, ratio_low=low, ratio_high=high)
