"""A share of images: the interval of what it is of all images, and the chance of one as high."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

__all__ = ["chance_of_as_many", "wilson_interval"]


def wilson_interval(num_correct: int, num_images: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a share, in [0, 1] (Wilson 1927): holds near 0 and 1, where the normal one fails.

    Raises ValueError for counts that make no sense.
    """
    if num_images < 1 or not 0 <= num_correct <= num_images:
        raise ValueError(f"counts make no sense: {num_correct} of {num_images}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = num_correct / num_images
    centre = (share + z * z / (2 * num_images)) / (1 + z * z / num_images)
    spread = share * (1 - share) / num_images + z * z / (4 * num_images**2)
    half = z / (1 + z * z / num_images) * spread**0.5
    # rounding must not leave the share itself outside
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def chance_of_as_many(num_correct: int, num_images: int, rate: float) -> float:
    """The probability that `num_correct` or more of `num_images` are right where each is by `rate`, in [0, 1].

    The p-value of the one-sided binomial test. Raises ValueError for counts or a rate that make no sense.
    """
    if num_images < 1 or not 0 <= num_correct <= num_images or not 0 <= rate <= 1:
        raise ValueError(f"counts or rate make no sense: {num_correct} of {num_images}, {rate}")
    if num_correct == 0 or rate == 1:
        return 1.0
    if rate == 0:
        return 0.0
    counts = np.arange(num_images + 1)
    steps = np.log(num_images - counts[:-1]) - np.log(counts[1:])
    # in logarithms: the factorials of a few hundred images are beyond float64
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + counts * np.log(rate) + counts[::-1] * np.log1p(-rate)
    return float(min(1.0, np.exp(logs[num_correct:]).sum()))
