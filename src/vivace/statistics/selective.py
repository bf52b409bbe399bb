"""Selective classification: how sure an answer must be so that the answers that are given are rarely wrong.

Shapes: N images, J levels of confidence, from the strictest to the one that answers all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vivace.statistics.proportions import binomial_pvalue

__all__ = ["Level", "certified_level", "fewest_images", "levels_of", "risk_bound"]

NUM_LEVELS = 50


@dataclass(frozen=True, kw_only=True)
class Level:
    """A confidence from which on images are answered, and what calibration images say of it."""

    confidence: float
    """The least probability of the likeliest class, [0, 1]."""
    expected_answered: float
    """Of the calibration images, going by the other images that the level was chosen on, as the next."""
    expected_errors: float
    answered: int
    """Of the calibration images."""
    errors: int
    """Of those answered."""


def levels_of(
    confidence_n: np.ndarray, right_n: np.ndarray, calibration_N: np.ndarray, right_N: np.ndarray
) -> tuple[Level, ...]:
    """Levels at evenly spaced fractions of the images n that choose them, counted on the calibration images N.

    Both: float confidences in [0, 1], and bool whether the likeliest class is the true one. The two sets have no image
    in common. Raises ValueError without images.
    """
    if not len(confidence_n) or not len(calibration_N):
        raise ValueError(f"levels need images: got {len(confidence_n)} to choose and {len(calibration_N)} to count")
    order = np.argsort(-confidence_n, kind="stable")
    counts = np.unique(np.linspace(0, len(order), min(NUM_LEVELS, len(order)) + 1).round().astype(int))[1:]
    thresholds = confidence_n[order][counts - 1].astype(np.float64)
    # the last one answers all images, those too that are less sure than any of these
    thresholds[-1] = 0.0
    levels = {}
    scale = len(calibration_N) / len(confidence_n)
    for threshold in thresholds:
        chosen, answered = confidence_n >= threshold, calibration_N >= threshold
        levels[float(threshold)] = Level(
            confidence=float(threshold),
            expected_answered=float(chosen.sum() * scale),
            expected_errors=float((chosen & ~right_n).sum() * scale),
            answered=int(answered.sum()),
            errors=int((answered & ~right_N).sum()),
        )
    return tuple(levels.values())


def certified_level(levels: Sequence[Level], risk: float, *, certainty: float = 0.95) -> Level | None:
    """The level that answers most, of which is certain that at most `risk` of the answers are wrong; None: of none.

    risk: the error among answered images, (0, 1). The probability that a level is returned whose error is larger is at
    most 1 - certainty over the choice of calibration images, whichever is returned: fixed-sequence testing of "Learn
    then Test" (Angelopoulos et al. 2021, arXiv:2110.01052) with exact binomial tests. The tests begin at the level that
    the other images promise most of, and go on, to levels that answer more, until the first that fails.
    """
    if not levels or not 0 < risk < 1:
        raise ValueError(f"impossible: {len(levels)} levels and a risk of {risk}. Give 1 or more, and (0, 1).")
    hoped = [_p_value(_hoped_errors(level), round(level.expected_answered), risk) for level in levels]
    found = None
    for level in levels[int(np.argmin(hoped)) :]:
        if _p_value(level.errors, level.answered, risk) > 1 - certainty:
            break
        found = level
    return found


def _hoped_errors(level: Level) -> int:
    # one more than expected: of few images none may be wrong by chance
    return min(round(level.expected_answered), math.ceil(level.expected_errors) + 1)


def _p_value(errors: int, answered: int, risk: float) -> float:
    """The probability of so few errors if each answer were wrong at `risk`: small where the error is below it."""
    return binomial_pvalue(answered - errors, answered, 1 - risk) if answered else 1.0


def risk_bound(errors: int, answered: int, *, certainty: float = 0.95) -> float:
    """One-sided upper bound on the error rate, in [0, 1], of Clopper & Pearson 1934; 1 without answers."""
    if errors >= answered:
        return 1.0
    low, high = errors / answered, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _p_value(errors, answered, middle) > 1 - certainty:
            low = middle
        else:
            high = middle
    return high


def fewest_images(risk: float, *, certainty: float = 0.95) -> int:
    """How many answers, none of them wrong, show that at most `risk` are wrong."""
    return math.ceil(math.log(1 - certainty) / math.log(1 - risk))
