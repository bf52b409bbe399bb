"""Times two functions in one process, interleaved and synchronized, with a confidence interval of their ratio."""

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
    """A comparison was stopped before it had enough measurements."""


@dataclass(frozen=True)
class Comparison:
    """Interleaved timings of two functions. A ratio above 1 means that the candidate is faster."""

    baseline_ms: tuple[float, ...]
    candidate_ms: tuple[float, ...]
    ratio: float
    """Geometric mean of baseline / candidate over the pairs."""
    ratio_low: float
    ratio_high: float
    """Bounds of Student's 95 % interval of `ratio` over the pairs; valid for this process only."""

    @property
    def faster(self) -> bool:
        """Whether the whole interval is above 1."""
        return self.ratio_low > 1.0


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work; on a CPU return at once."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    elif device.type == "mps":
        import torch

        torch.mps.synchronize()


def time_call(function: Callable[[], object], device: torch.device) -> float:
    """The duration of one call, ms, from an idle device to an idle device."""
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
    """Time both functions `num_pairs` times (two or more), interleaved (A B, B A, …), after `num_warmup` calls of each.

    The order alternates, so that a drift of the machine's speed favours neither. stop: called before each pair; the
    measurement ends as soon as it returns True. Raises TimeUp if there are fewer than two pairs by then.
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
