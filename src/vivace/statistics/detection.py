"""How well a score tells images that are unlike the known ones: AUROC and FPR95, with 95 % intervals.

Scores are higher for images that are less like the known ones. Shapes: n known images, m others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vivace.statistics.proportions import wilson_interval

__all__ = ["Detection", "auroc", "auroc_interval", "detection"]

# known images that are to be taken for known
ACCEPTED = 0.95


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well a score tells `num_others` images from `num_known`. All in [0, 1]; `_low` and `_high`: 95 %."""

    num_known: int
    num_others: int
    auroc: float
    """The probability that one of the others scores higher than a known image; 0.5: by chance."""
    auroc_low: float
    auroc_high: float
    fpr95: float
    """The others that are taken for known at the score that 95 % of the known images stay below."""
    fpr95_low: float
    """Wilson's interval for the others; the score is taken as given."""
    fpr95_high: float


def detection(known_n: np.ndarray, others_m: np.ndarray) -> Detection:
    """The figures of scores of known images and of others. Raises ValueError if there are none of either."""
    value = auroc(known_n, others_m)
    low, high = auroc_interval(value, len(known_n), len(others_m))
    # the smallest score up to which 95 % of the known images are; (n · 0.95) may be a rounding above a whole number
    threshold = np.sort(known_n)[math.ceil(len(known_n) * ACCEPTED - 1e-9) - 1]
    accepted = int((others_m <= threshold).sum())
    least, most = wilson_interval(accepted, len(others_m))
    return Detection(
        num_known=len(known_n),
        num_others=len(others_m),
        auroc=value,
        auroc_low=low,
        auroc_high=high,
        fpr95=accepted / len(others_m),
        fpr95_low=least,
        fpr95_high=most,
    )


def auroc(known_n: np.ndarray, others_m: np.ndarray) -> float:
    """The probability that one of the others scores higher than a known image, ties counted as half; in [0, 1]."""
    if not len(known_n) or not len(others_m):
        raise ValueError(
            f"there must be images on both sides: got {len(known_n)} known ones and {len(others_m)} others"
        )
    ordered = np.sort(known_n)
    below, not_above = (np.searchsorted(ordered, others_m, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(ordered))


def auroc_interval(value: float, num_known: int, num_others: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of an AUROC, in [0, 1], which does not collapse to a point where the two are told perfectly.

    Wilson's idea with the variance of Hanley & McNeil: the values from which this one is no more than z standard errors
    away (Newcombe 2006, Statistics in Medicine 25:559, method 5). It assumes no scores beyond their order.
    """
    z, mean = NormalDist().inv_cdf(0.5 + confidence / 2), (num_known + num_others) / 2

    def inside(supposed: float) -> bool:
        rest = (1 - supposed) / (2 - supposed) + supposed / (1 + supposed)
        variance = supposed * (1 - supposed) * (1 + (mean - 1) * rest) / (num_known * num_others)
        return abs(value - supposed) <= z * variance**0.5

    ends = []
    for end in (0.0, 1.0):
        near, far = value, end
        for _ in range(50):
            middle = (near + far) / 2
            near, far = (middle, far) if inside(middle) else (near, middle)
        ends.append(near)
    return ends[0], ends[1]
