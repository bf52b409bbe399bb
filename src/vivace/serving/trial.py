"""The trial at the start: how many images a batch has at most, and how long an image waits for others."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from vivace.predictor import Predictor

__all__ = ["Batching", "choose", "run_trial"]

SIZES = (1, 2, 4, 8, 16, 32, 64)
# a larger batch must be this much faster per image: it makes those in it wait for each other
WORTH_IT = 0.05
# a batch that takes longer holds up whoever comes next for too long
MAX_BATCH_SECONDS = 0.25
MAX_WAIT = 0.005
REPEATS = 3


@dataclass(frozen=True)
class Batching:
    """What the trial found."""

    max_batch: int
    max_wait: float
    """Seconds."""
    seconds: dict[int, float]
    """Batch size → seconds of a batch, the fastest of a few; empty: nothing was tried."""


def run_trial(predictor: Predictor, seconds: float) -> Batching:
    """Times batches of growing size until they help no more or the time is up, at least the first.

    The predictor has classified an image before, and takes batches of any size in SIZES.
    """
    until, found = time.perf_counter() + seconds, {}
    size, channels, dtype = predictor.bundle.preprocess.size, predictor.bundle.preprocess.channels, "uint8"
    dtype = predictor.bundle.preprocess.dtype
    for count in SIZES:
        images = np.zeros((count, size, size, channels), dtype)
        began = time.perf_counter()
        predictor.probs(images)
        first = time.perf_counter() - began
        times = [first]
        for _ in range(REPEATS):
            if time.perf_counter() > until:
                break
            began = time.perf_counter()
            predictor.probs(images)
            times.append(time.perf_counter() - began)
        found[count] = min(times[1:] or times)
        # the next takes twice as long at least, and is compiled first by some runtimes
        left = until - time.perf_counter()
        if left < 2 * sum(times) or found[count] > MAX_BATCH_SECONDS or not _helps(found):
            break
    return choose(found)


def _helps(found: dict[int, float]) -> bool:
    """Whether one of the last two sizes was worth it: a single one may be an odd one."""
    if len(found) < 3:
        return True
    *earlier, before, last = (seconds / count for count, seconds in found.items())
    return min(before, last) < (1 - WORTH_IT) * min(earlier)


def choose(found: dict[int, float]) -> Batching:
    """The smallest batch size whose seconds per image are near the least; to wait pays for no more than half of what a
    single image takes.

    found: batch size → seconds of a batch.
    """
    per_image = {count: seconds / count for count, seconds in found.items() if seconds <= MAX_BATCH_SECONDS}
    if not per_image:
        return Batching(1, 0.0, dict(found))
    least = min(per_image.values())
    count = min(count for count, seconds in per_image.items() if seconds <= least * (1 + WORTH_IT))
    # batches that save nothing are not waited for
    wait = 0.0 if count == 1 else min(MAX_WAIT, found[min(found)] / 2)
    return Batching(count, wait, dict(found))
