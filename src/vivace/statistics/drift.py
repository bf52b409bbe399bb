"""A test of whether answers still come as on validation images, which may be looked at after every image, for ever.

Shapes: K classes, J edges of confidence, M events (2 for each class and each edge), A alternatives of an event.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["BLOCK", "DriftTest", "upper_bounds"]

# between these numbers of images a new start is bet on: drift that comes late is not outweighed by what was before
BLOCK = 50
# the probability of an event that is bet on, as a part of the way from the highest without drift to 1
ALTERNATIVES_A = (0.03, 0.15, 0.5, 0.9)
# capital beyond it changes no verdict; to take some away keeps the rate
MOST = 1e100


def upper_bounds(counts: np.ndarray, total: int, miss: float) -> np.ndarray:
    """float64 upper bounds on probabilities: each is too low with a probability of `miss` at most.

    counts: how often each event came in `total` independent trials. By Chernoff's bound: total · KL(counts / total ‖
    bound) = log(1 / miss). It is a little wider than the exact one of Clopper and Pearson, and needs no quantile.
    """
    rates = np.asarray(counts, np.float64) / total
    low, high = rates.copy(), np.ones_like(rates)
    for _ in range(60):
        middle = (low + high) / 2
        inside = total * _divergence(rates, middle) <= math.log(1 / miss)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return high


def _divergence(rates: np.ndarray, others: np.ndarray) -> np.ndarray:
    """KL divergence of two coins, in nats; 0 · log 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(rates > 0, rates * np.log(rates / others), 0.0)
        second = np.where(rates < 1, (1 - rates) * np.log((1 - rates) / (1 - others)), 0.0)
    total: np.ndarray = first + second
    return total


class DriftTest:
    """Whether classes or confidences come more often, or more rarely, than on validation images.

    Without drift, which is to say if all images are drawn independently from where the validation images come from,
    the probability that `alarm` is ever true is at most `rate`, however long it runs and however often it is looked
    at. Half of `rate` is for the chance in the validation images: each event's probability is bounded from them. The
    other half is for that in what follows: a capital of 1 is bet, at odds that are fair at those bounds, on each event
    being more probable. By Ville's inequality it ever reaches 2 / rate with a probability of rate / 2 at most.
    Half of the capital is bet from the first image on, the rest is kept for the starts of later blocks.
    Source: testing by betting, Shafer 2021 and Waudby-Smith & Ramdas 2024, arXiv:2010.09686; mixed over starts as the
    e-detectors of Shin, Ramdas & Rinaldo 2024, arXiv:2203.03532.
    """

    def __init__(self, class_counts: Sequence[int], below_counts: Sequence[int], total: int, *, rate: float) -> None:
        """class_counts: of `total` validation images, those of each predicted class. below_counts: those whose
        confidence is below each edge. rate: (0, 1). Raises ValueError for counts beyond `total`, or none."""
        counts = np.array([*class_counts, *below_counts], np.float64)
        if total < 1 or not len(counts) or counts.min() < 0 or counts.max() > total or not 0 < rate < 1:
            raise ValueError(f"impossible counts or rate: {len(counts)} of up to {total}, {rate}")
        self.rate, self.threshold = rate, 2 / rate
        num = len(counts)
        # that an event comes, and that it does not: for both, whether it comes more often
        bounds_M = upper_bounds(np.concatenate([counts, total - counts]), total, rate / 2 / (2 * num))
        chance_MA = bounds_M[:, None] + (1 - bounds_M[:, None]) * np.array(ALTERNATIVES_A)
        # an event that nearly all images may have can't come more often
        open_M1 = bounds_M[:, None] < 1 - 1e-9
        with np.errstate(divide="ignore", invalid="ignore"):
            self._won_MA = np.where(open_M1, np.log(chance_MA / bounds_M[:, None]), 0.0)
            self._lost_MA = np.where(open_M1, np.log((1 - chance_MA) / (1 - bounds_M[:, None])), 0.0)
        # as much on classes as on confidences, however many classes there are
        parts = [size for size in (len(class_counts), len(below_counts)) if size]
        share = np.concatenate([np.full(size, 1 / (size * len(parts))) for size in parts])
        self._shares_MA = np.repeat(np.concatenate([share, share])[:, None], len(ALTERNATIVES_A), 1) / (
            2 * len(ALTERNATIVES_A)
        )
        self._betting_MA = 0.5 * self._shares_MA
        self._kept = 0.5
        self._num_blocks, self._num_in_block = 0, 0
        self._seen_M = np.zeros(num)
        self.num_images = 0
        self.alarm_at: int | None = None
        """The number of the image after which there was an alarm first; None: there was none."""

    @property
    def alarm(self) -> bool:
        return self.alarm_at is not None

    def update(self, events_NM: np.ndarray) -> None:
        """Take in N images in order. events_NM: bool [N, K + J]: the class, and the edges that it is below."""
        while len(events_NM):
            room = BLOCK - self._num_in_block
            self._take(events_NM[:room])
            events_NM = events_NM[room:]

    def evidence(self) -> float:
        """The capital: 1 at the start; from `threshold` on there is an alarm. About 1 or less without drift."""
        return float(self._kept + self._capital().sum())

    def strongest(self) -> tuple[int, bool]:
        """(the event that most speaks for drift, whether it comes more often)."""
        index = int(self._capital().sum(1).argmax())
        num = len(self._seen_M)
        return index % num, index < num

    def _take(self, events_NM: np.ndarray) -> None:
        self._seen_M += events_NM.sum(0)
        self._num_in_block += len(events_NM)
        self.num_images += len(events_NM)
        if self.alarm_at is None and self.evidence() >= self.threshold:
            self.alarm_at = self.num_images
        if self._num_in_block == BLOCK:
            self._num_blocks += 1
            started = 0.5 / (self._num_blocks * (self._num_blocks + 1))
            self._betting_MA = np.minimum(self._capital(), MOST) + started * self._shares_MA
            self._kept -= started
            self._seen_M[:], self._num_in_block = 0, 0

    def _capital(self) -> np.ndarray:
        came_M = np.concatenate([self._seen_M, self._num_in_block - self._seen_M])[:, None]
        logs_MA = came_M * self._won_MA + (self._num_in_block - came_M) * self._lost_MA
        capital: np.ndarray = self._betting_MA * np.exp(np.minimum(logs_MA, 230.0))
        return capital
