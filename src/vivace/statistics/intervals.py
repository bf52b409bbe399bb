"""Ratios and differences of a few timings or runs, with Student's 95 % confidence interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["Ratio", "paired_gain", "paired_ratio", "process_ratio", "student_mean", "student_ratio"]

# (speedup, low, high): a speedup with its 95 % interval; low and high are None for a single value
Ratio = tuple[float, float | None, float | None]
# the 0.975 quantile of Student's t for 1, 2, ... degrees of freedom; for more, the last one is slightly conservative
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


def process_ratio(processes: Sequence[Sequence[tuple[float, float]]]) -> Ratio:
    """(speedup, low, high) of a candidate over a baseline, from rounds timed in several pairs of processes.

    processes: for each pair of processes, the times (baseline, candidate) of its rounds, in seconds. A disturbance of a
    whole round cancels in the ratio of the round. Each pair of processes gives one value, the median of its ratios, and
    Student's interval is computed over these values: two processes of the same program may differ throughout their
    lifetime, which more rounds would not reveal. A single pair has no interval.
    """
    ratios = [float(np.median([before / after for before, after in rounds])) for rounds in processes]
    return student_ratio(ratios) if len(ratios) > 1 else (ratios[0], None, None)


def paired_ratio(baseline: Sequence[float], candidate: Sequence[float]) -> Ratio:
    """(speedup, low, high) of a candidate over a baseline, from paired times of whole runs.

    The interval is that of `student_ratio`, which suits a few runs; a single pair has no interval.
    """
    ratios = [one / other for one, other in zip(baseline, candidate, strict=True)]
    return student_ratio(ratios) if len(ratios) > 1 else (ratios[0], None, None)


def paired_gain(baseline: Sequence[float], candidate: Sequence[float]) -> tuple[float, float | None, float | None]:
    """(gain, low, high): the mean of candidate - baseline over pairs.

    The interval is that of `student_mean`; a single pair has no interval.
    """
    gains = [other - one for one, other in zip(baseline, candidate, strict=True)]
    return student_mean(gains) if len(gains) > 1 else (gains[0], None, None)


def student_ratio(ratios: Sequence[float]) -> tuple[float, float, float]:
    """(ratio, low, high): the geometric mean of ratios, with Student's 95 % interval of their logarithms.

    ratios: two or more, independent, > 0. Not a bootstrap, whose interval is too narrow for a few values
    (docs/log/2026-11-28.md).
    """
    mean, low, high = np.exp(student_mean(np.log(ratios)))
    return float(mean), float(low), float(high)


def student_mean(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of two or more independent values, with Student's 95 % interval (approximately normal data)."""
    mean = float(np.mean(values))
    width = STUDENT[min(len(values) - 1, len(STUDENT)) - 1] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, mean - width, mean + width
