"""Compares two models by scores of the same samples that lie anywhere in [0, 1], such as an IoU for each image.

For scores that are 0 or 1 alone `statistics.paired` has a tighter bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["ScoreLoss", "bernstein_bound", "betting_bound", "score_loss"]

# samples are taken in a random order that is always the same: a bound must not depend on when it is computed
SEED = 0
# stakes stay below this fraction of what could be lost at once (Waudby-Smith & Ramdas 2020, section 4)
MAX_STAKE = 0.9
# before any sample is seen: one sample with variance 1/4, the largest there is (theirs too)
PRIOR_MEAN, PRIOR_VARIANCE = 0.5, 0.25


@dataclass(frozen=True, kw_only=True)
class ScoreLoss:
    """Mean scores before and after a change, on the same samples, in [0, 1]."""

    num_samples: int
    before: float
    after: float
    bound: float
    """One-sided upper bound on the drop, in [-1, 1], at `confidence`."""
    confidence: float

    @property
    def drop(self) -> float:
        """before - after."""
        return self.before - self.after


def score_loss(before_B: np.ndarray, after_B: np.ndarray, *, confidence: float = 0.95) -> ScoreLoss:
    """The drop of the mean score from before_B to after_B, float [B] in [0, 1], with the bound of `betting_bound`.

    Raises ValueError if there are no samples, if the shapes differ, or for scores outside [0, 1].
    """
    before, after = np.asarray(before_B, np.float64), np.asarray(after_B, np.float64)
    if before.shape != after.shape or before.ndim != 1 or len(before) == 0:
        raise ValueError(f"both sides must have the same samples, at least one: got {before.shape} and {after.shape}")
    if not all(((side >= 0) & (side <= 1)).all() for side in (before, after)):
        raise ValueError("scores must be in [0, 1]")
    return ScoreLoss(
        num_samples=len(before),
        before=float(before.mean()),
        after=float(after.mean()),
        bound=betting_bound(before - after, confidence=confidence),
        confidence=confidence,
    )


def betting_bound(differences_B: np.ndarray, *, confidence: float = 0.95) -> float:
    """One-sided upper bound on the mean of independent values in [-1, 1], valid for every number of samples.

    A bet is placed against each mean that is supposed: on the next sample being below it, with a stake that depends on
    the samples before. Were the mean that large, the capital would grow 20-fold with a probability of at most 5 %
    (Ville's inequality); the bound is the smallest mean that is refuted so. Stakes are those of Waudby-Smith & Ramdas
    2020, arXiv:2010.09686, "predictable plug-in". Its margin above the mean is a half to a fifth of that of
    `bernstein_bound` (docs/log/2026-11-29.md). Raises ValueError for no values, or values outside [-1, 1].
    """
    differences = np.asarray(differences_B, np.float64)
    if differences.ndim != 1 or len(differences) == 0:
        raise ValueError(f"there must be at least one value: got the shape {differences.shape}")
    if not ((differences >= -1) & (differences <= 1)).all():
        raise ValueError("values must be in [-1, 1]")
    values = (np.random.default_rng(SEED).permutation(differences) + 1) / 2
    stakes, needed = _stakes(values, confidence), math.log(1 / (1 - confidence))
    low, high = float(values.mean()), 1.0
    # bisection: the larger the supposed mean, the more a bet against it gains
    for _ in range(50):
        middle = (low + high) / 2
        if _largest_gain(values, stakes, middle) >= needed:
            high = middle
        else:
            low = middle
    return 2 * high - 1


def _stakes(values: np.ndarray, confidence: float) -> np.ndarray:
    """The stake for each value, from those before it alone: what would be best for their variance."""
    counts = np.arange(1, len(values) + 1)
    means = (PRIOR_MEAN + np.cumsum(values)) / (counts + 1)
    variances = (PRIOR_VARIANCE + np.cumsum((values - means) ** 2)) / (counts + 1)
    before = np.concatenate([[PRIOR_VARIANCE], variances[:-1]])
    stakes: np.ndarray = np.sqrt(2 * math.log(1 / (1 - confidence)) / (len(values) * before))
    return stakes


def _largest_gain(values: np.ndarray, stakes: np.ndarray, mean: float) -> float:
    """The logarithm of the largest capital on the way, of 1 at the beginning."""
    most = MAX_STAKE / max(1 - mean, 1e-12)
    return float(np.cumsum(np.log1p(np.minimum(stakes, most) * (mean - values))).max())


def bernstein_bound(differences_B: np.ndarray, *, confidence: float = 0.95) -> float:
    """One-sided upper bound on the mean of independent values in [-1, 1], from their variance, in closed form.

    Source: Maurer & Pontil 2009, arXiv:0907.3740, theorem 4, for values of a range of 2. What `betting_bound` is
    compared with. Raises ValueError for fewer than two values.
    """
    differences = np.asarray(differences_B, np.float64)
    count = len(differences)
    if count < 2:
        raise ValueError(f"a variance needs two values: got {count}")
    chance = math.log(2 / (1 - confidence))
    spread = math.sqrt(2 * float(differences.var(ddof=1)) * chance / count)
    return min(1.0, float(differences.mean()) + spread + 2 * 7 * chance / (3 * (count - 1)))
