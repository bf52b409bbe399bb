"""The trial: how many images a batch has at most, and how long an image waits for others."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from vivace.predictor import Predictor

__all__ = ["FIRST", "Batching", "Trial", "choose", "finished", "run_trial", "trial_steps"]

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


# until a trial has found something
FIRST = Batching(1, 0.0, {})
Trial = Generator[None, None, Batching]


def run_trial(predictor: Predictor, seconds: float) -> Batching:
    """What `trial_steps` finds, all at once."""
    return finished(trial_steps(predictor, seconds))


def finished(steps: Trial) -> Batching:
    """What a trial finds, once the rest of it is done."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Batching = end.value
            return found


def trial_steps(predictor: Predictor, seconds: float) -> Trial:
    """Times batches of growing size until they help no more or the time is up, at least the first; one batch a step.

    seconds: of the batches; what comes between the steps does not count. The predictor has classified an image before,
    and takes batches of any size in SIZES.
    """
    size, channels = predictor.bundle.preprocess.size, predictor.bundle.preprocess.channels
    left, found = seconds, dict[int, float]()
    for count in SIZES:
        images = np.zeros((count, size, size, channels), predictor.bundle.preprocess.dtype)
        times: list[float] = []
        while not times or (len(times) <= REPEATS and left > 0):
            began = time.perf_counter()
            predictor.probs(images)
            times.append(time.perf_counter() - began)
            left -= times[-1]
            yield
        # the first of a size is compiled by some runtimes
        found[count] = min(times[1:] or times)
        # the next takes twice as long at least
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
