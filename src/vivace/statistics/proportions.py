"""Proportions of images: their confidence interval and a binomial test."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

__all__ = ["binomial_pvalue", "wilson_interval"]


def wilson_interval(num_correct: float, num_images: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided confidence interval (low, high) of a proportion, in [0, 1].

    Wilson's score interval (1927), which is valid near 0 and 1, unlike the normal one. num_correct: where each image
    has a score between 0 and 1, their sum; the interval is then too wide. Raises ValueError for impossible counts.
    """
    if num_images < 1 or not 0 <= num_correct <= num_images:
        raise ValueError(f"impossible counts: {num_correct} of {num_images}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    proportion = num_correct / num_images
    centre = (proportion + z * z / (2 * num_images)) / (1 + z * z / num_images)
    spread = proportion * (1 - proportion) / num_images + z * z / (4 * num_images**2)
    half = z / (1 + z * z / num_images) * spread**0.5
    # rounding must not put the proportion itself outside
    return max(0.0, min(proportion, centre - half)), min(1.0, max(proportion, centre + half))


def binomial_pvalue(num_correct: int, num_images: int, rate: float) -> float:
    """The probability, in [0, 1], of `num_correct` or more of `num_images` correct if each is correct at `rate`.

    The p-value of the one-sided binomial test. Raises ValueError for impossible counts or a rate outside [0, 1].
    """
    if num_images < 1 or not 0 <= num_correct <= num_images or not 0 <= rate <= 1:
        raise ValueError(f"impossible counts or rate: {num_correct} of {num_images}, {rate}")
    if num_correct == 0 or rate == 1:
        return 1.0
    if rate == 0:
        return 0.0
    counts = np.arange(num_images + 1)
    steps = np.log(num_images - counts[:-1]) - np.log(counts[1:])
    # in logarithms, because the factorials of a few hundred exceed float64
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + counts * np.log(rate) + counts[::-1] * np.log1p(-rate)
    return float(min(1.0, np.exp(logs[num_correct:]).sum()))
