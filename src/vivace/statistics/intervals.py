"""Ratios and gains of a handful of timings or runs, with Student's 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["Ratio", "paired_gain", "paired_ratio", "process_ratio", "student_mean", "student_ratio"]

# (ratio, low, high): how many times as fast one side is, with its 95 % interval; None where there is a single value
Ratio = tuple[float, float | None, float | None]
# the 0.975 quantile of Student's distribution by degrees of freedom, from 1 on; of more the last is a little too wide
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


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
