"""Two classifiers on the same images: how much accuracy one of them loses, at most, against the other.

Images on which both are right or both are wrong say nothing of it. Of n images, `lost` were right before and are wrong
after, `gained` the other way round; the loss is (lost - gained) / n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vivace.statistics.shares import chance_of_as_many

__all__ = ["PairedLoss", "exact_p_value", "images_to_prove", "loss_bound", "paired_loss"]


@dataclass(frozen=True, kw_only=True)
class PairedLoss:
    """Accuracy before and after a change, on the same images. Shares are in [0, 1]."""

    num_images: int
    top1_before: float
    top1_after: float
    lost: int
    """Images that were right before and are wrong after."""
    gained: int
    bound: float
    """One-sided upper bound on the loss, at `confidence`."""
    confidence: float

    @property
    def drop(self) -> float:
        """The loss on these images; below 0 where accuracy was gained."""
        return (self.lost - self.gained) / self.num_images


def paired_loss(before_B: np.ndarray, after_B: np.ndarray, *, confidence: float = 0.95) -> PairedLoss:
    """The loss from before_B to after_B, bool: whether each image was classified rightly.

    Raises ValueError for no images, or different numbers of them.
    """
    before, after = np.asarray(before_B, dtype=bool), np.asarray(after_B, dtype=bool)
    if before.shape != after.shape or before.ndim != 1 or len(before) == 0:
        raise ValueError(f"the two sides must be of the same images: got {before.shape} and {after.shape}")
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    return PairedLoss(
        num_images=len(before),
        top1_before=float(before.mean()),
        top1_after=float(after.mean()),
        lost=lost,
        gained=gained,
        bound=loss_bound(lost, gained, len(before), confidence=confidence),
        confidence=confidence,
    )


def loss_bound(lost: float, gained: float, num_images: int, *, confidence: float = 0.95) -> float:
    """One-sided upper bound on the loss of accuracy, in [-1, 1], by Tango's score test for paired shares.

    The largest loss that a test at 1 - confidence does not reject (Tango 1998, Statistics in Medicine 17:891). Unlike
    the normal interval it is no single point where no answer changed: with 0 lost of 1,000 it is 0.27 %.
    Raises ValueError for counts that make no sense.
    """
    if num_images < 1 or min(lost, gained) < 0 or lost + gained > num_images:
        raise ValueError(f"counts make no sense: {lost} lost and {gained} gained of {num_images}")
    z = NormalDist().inv_cdf(confidence)
    low, high = (lost - gained) / num_images, 1.0
    # the statistic falls as the supposed loss rises
    for _ in range(60):
        middle = (low + high) / 2
        if _score(lost, gained, num_images, middle) < -z:
            high = middle
        else:
            low = middle
    return high


def _score(lost: float, gained: float, n: int, loss: float) -> float:
    """How many standard errors the counts lie above a supposed loss; below 0 where they lie under it."""
    # the share of gained images that fits best where the loss is the supposed one
    a = 2 * n
    b = -lost - gained + (2 * n - lost + gained) * loss
    c = -gained * loss * (1 - loss)
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * share + loss * (1 - loss))
    difference = lost - gained - n * loss
    if variance <= 0:
        return 0.0 if difference == 0 else math.copysign(math.inf, difference)
    return difference / math.sqrt(variance)


def images_to_prove(loss: PairedLoss, budget: float) -> int | None:
    """How many images like these would prove a loss within `budget`; None if no number would, at the loss found."""
    if loss.drop >= budget or budget <= 0:
        return None
    low, high = 1, 1
    shares = loss.lost / loss.num_images, loss.gained / loss.num_images

    def proves(n: int) -> bool:
        return loss_bound(shares[0] * n, shares[1] * n, n, confidence=loss.confidence) <= budget

    while not proves(high):
        low, high = high, 2 * high
        if high > 10**10:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return high


def exact_p_value(lost: int, gained: int) -> float:
    """The chance of counts at least as far apart where neither side is better, in [0, 1]: McNemar's exact test.

    Two-sided, from the binomial distribution of the images that one side alone has right; 1 where there are none.
    """
    return min(1.0, 2 * chance_of_as_many(max(lost, gained), lost + gained, 0.5)) if lost + gained else 1.0
