"""Timings that can be believed: paired, alternating, synchronised, with an interval on their ratio."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = [
    "Comparison",
    "Ratio",
    "TimeUp",
    "compare",
    "paired_gain",
    "paired_ratio",
    "process_ratio",
    "student_mean",
    "student_ratio",
    "synchronize",
    "time_call",
]

# (ratio, low, high): how many times as fast one side is, with its 95 % interval; None where there is a single value
Ratio = tuple[float, float | None, float | None]
# the 0.975 quantile of Student's distribution by degrees of freedom, from 1 on; of more the last is a little too wide
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


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


def process_ratio(processes: Sequence[Sequence[tuple[float, float]]]) -> Ratio:
    """(ratio, low, high): how many times as fast the candidate is, from blocks timed in several pairs of processes.

    processes: for each pair of processes the times (baseline, candidate) of its rounds. What slowed a whole round
    cancels in the quotient of a round; a pair of processes gives one value, the median of its quotients, and the
    interval is Student's over these: two processes of the same program may differ for as long as they live, and
    rounds of the same two say nothing about that. One pair has no interval.
    """
    ratios = [float(np.median([before / after for before, after in rounds])) for rounds in processes]
    return student_ratio(ratios) if len(ratios) > 1 else (ratios[0], None, None)


def paired_ratio(baseline: Sequence[float], candidate: Sequence[float]) -> Ratio:
    """(ratio, low, high) of the times of whole runs, paired value by value: how many times as fast the candidate is.

    As `student_ratio` has it, for runs are a handful; a single pair has no interval.
    """
    ratios = [one / other for one, other in zip(baseline, candidate, strict=True)]
    return student_ratio(ratios) if len(ratios) > 1 else (ratios[0], None, None)


def paired_gain(baseline: Sequence[float], candidate: Sequence[float]) -> tuple[float, float | None, float | None]:
    """(gain, low, high), paired value by value: by how much the candidate is above the baseline.

    As `student_mean` has it; a single pair has no interval.
    """
    gains = [other - one for one, other in zip(baseline, candidate, strict=True)]
    return student_mean(gains) if len(gains) > 1 else (gains[0], None, None)


def student_ratio(ratios: Sequence[float]) -> tuple[float, float, float]:
    """(ratio, low, high): the geometric mean of ratios, with Student's 95 % interval on the scale of logarithms.

    ratios: two or more, independent of each other. For a handful of them: with 3, of normal logarithms, a bootstrap's
    interval holds the truth in 77 % of cases, with 5 in 92 %; this one in 95 %.
    """
    mean, low, high = np.exp(student_mean(np.log(ratios)))
    return float(mean), float(low), float(high)


def student_mean(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of two or more independent values, with Student's 95 % interval."""
    mean = float(np.mean(values))
    width = STUDENT[min(len(values) - 1, len(STUDENT)) - 1] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, mean - width, mean + width
