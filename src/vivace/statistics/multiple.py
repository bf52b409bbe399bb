"""Many tests at once: how sure to be of one finding when many places were looked at.

Shape: M tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = ["exact_interval", "holm", "hypergeometric_pvalue"]


def holm(p_values_M: np.ndarray) -> np.ndarray:
    """float64 [M], the p-values adjusted for their number: those of at most α are found, with α for all together.

    The probability that any test whose null hypothesis holds is found is at most α, however the tests depend on each
    other. Source: Holm 1979, "A simple sequentially rejective multiple test procedure". Raises ValueError for a p-value
    outside [0, 1].
    """
    p = np.asarray(p_values_M, np.float64)
    if ((p < 0) | (p > 1) | np.isnan(p)).any():
        raise ValueError(f"p-values lie in [0, 1]: got {p.min()} to {p.max()}")
    order = np.argsort(p, kind="stable")
    # the smallest counts for all tests, the next for one less; none below one before it
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)) if len(p) else p
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def hypergeometric_pvalue(num_inside: int, size: int, num_marked: int, total: int) -> float:
    """The probability, in [0, 1], of `num_inside` or more of `num_marked` of `total` images among `size` drawn of them.

    The p-value of Fisher's exact one-sided test of a part against the rest. Raises ValueError for impossible counts.
    """
    least, most = max(0, size + num_marked - total), min(size, num_marked)
    if not (0 <= size <= total and 0 <= num_marked <= total and least <= num_inside <= most):
        raise ValueError(f"impossible counts: {num_inside} of {size}, {num_marked} of {total}")
    if num_inside == least:
        return 1.0
    counts = np.arange(num_inside, most + 1)
    # ratios of neighbouring terms, in logarithms from the first one
    steps = (
        np.log(num_marked - counts[:-1])
        + np.log(size - counts[:-1])
        - np.log(counts[1:])
        - np.log(total - num_marked - size + counts[1:])
    )
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    first = (
        _log_choose(num_marked, num_inside)
        + _log_choose(total - num_marked, size - num_inside)
        - _log_choose(total, size)
    )
    return float(min(1.0, math.exp(first + logs.max()) * np.exp(logs - logs.max()).sum()))


def _log_choose(total: int, count: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)


def exact_interval(count: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided confidence interval (low, high) of a proportion, in [0, 1], of Clopper & Pearson 1934.

    It covers at least as often as stated at any confidence, unlike Wilson's, which is approximate where many intervals
    together need a very high one. Raises ValueError for impossible counts.
    """
    if total < 1 or not 0 <= count <= total:
        raise ValueError(f"impossible counts: {count} of {total}")
    tail = (1 - confidence) / 2
    counts = np.arange(total + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(total - counts[:-1]) - np.log(counts[1:]))])

    def at_least(rate: float) -> float:
        some = counts[count:]
        logs = log_choose[count:] + some * math.log(rate) + (total - some) * math.log1p(-rate)
        return float(np.exp(logs).sum())

    def at_most(rate: float) -> float:
        some = counts[: count + 1]
        logs = log_choose[: count + 1] + some * math.log(rate) + (total - some) * math.log1p(-rate)
        return float(np.exp(logs).sum())

    low = 0.0 if count == 0 else _root(lambda rate: at_least(rate) - tail)
    high = 1.0 if count == total else _root(lambda rate: tail - at_most(rate))
    return min(low, count / total), max(high, count / total)


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function of a rate in (0, 1) is 0."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
