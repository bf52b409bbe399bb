"""What drop-ins lose on samples: scores beside the original's, and the bound on the drop of their mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivace.acceleration.decide import CONFIDENCE
from vivace.acceleration.modules.batches import MAX_SAMPLES, Batch
from vivace.acceleration.modules.dropin import AcceleratedModule
from vivace.acceleration.modules.metrics import Scorer
from vivace.acceleration.modules.signature import flatten, rebuild
from vivace.acceleration.modules.subject import Subject
from vivace.errors import VivaceError, first_line
from vivace.statistics.bounded import ScoreLoss, score_loss
from vivace.statistics.paired import PairedLoss, images_to_prove, paired_loss

__all__ = ["Scored", "certified_in_order", "loss_of", "num_affordable", "samples_needed", "score", "unproven"]

# times the samples that are enough where no score changes: some do
SPARE = 1.5
# each program computes as many batches in a row as the original does in this time, or as its outputs have bytes: right
# after another program each is slower (see `timing`), and outputs are kept meanwhile
RUN_SECONDS, RUN_BYTES = 0.3, 64 * 2**20


@dataclass
class Scored:
    """Scores of one drop-in, for the samples that its program computed."""

    before: list[np.ndarray] = field(default_factory=list)
    after: list[np.ndarray] = field(default_factory=list)
    num_slow: int = 0
    """Samples that went to the original."""
    failure: str | None = None
    """Why it is out: what it raised, or that its outputs were no numbers."""

    @property
    def num_samples(self) -> int:
        return sum(map(len, self.before))


def score(
    dropins: Sequence[AcceleratedModule],
    batches: Iterable[Batch],
    subject: Subject,
    scorer: Scorer,
    *,
    max_samples: int,
    stop: Callable[[], bool],
) -> tuple[list[Scored], int]:
    """(scores of each drop-in beside the original's, samples that count), each batch computed by all of them.

    In runs of batches, one program after the other. stop: asked after each batch. What ends it early depends on time
    and number, never on scores. Raises what the original and the metric on its outputs raise.
    """
    found, num_read = [Scored() for _ in dropins], 0
    run: list[tuple[Batch, np.ndarray, Any]] = []
    began, num_bytes = time.monotonic(), 0

    def end_run() -> None:
        for dropin, scored in zip(dropins, found, strict=True):
            for batch, before, original in run:
                if scored.failure is None:
                    _score_one(dropin, scored, batch, before, original, scorer)
        run.clear()

    for batch in batches:
        original = subject.outputs(batch)
        before = scorer.scores(original, batch, original)
        kept = _kept(original)
        run.append((batch, before, original if kept is None else kept))
        num_read += batch.num_counted
        num_bytes += batch.num_bytes + sum(tensor.nbytes for tensor in flatten(original)[0])
        if kept is None or num_bytes > RUN_BYTES or time.monotonic() - began > RUN_SECONDS:
            end_run()
            began, num_bytes = time.monotonic(), 0
        if num_read >= max_samples or stop():
            break
    end_run()
    return found, num_read


def _kept(outputs: Any) -> Any:
    """A copy of what a module returned, which may be its own memory; None for what can't be copied."""
    tensors, structure = flatten(outputs)
    if structure.opaque_types():
        return None
    try:
        return rebuild(structure, [tensor.clone() for tensor in tensors])
    except Exception:
        # a mapping with a constructor of its own
        return None


def _score_one(
    dropin: AcceleratedModule, scored: Scored, batch: Batch, before: np.ndarray, original: object, scorer: Scorer
) -> None:
    try:
        outputs = dropin.try_fast(batch.call.args, batch.call.kwargs)
        if outputs is None:
            scored.num_slow += batch.size
            return
        after = scorer.scores(outputs[0], batch, original)
    except VivaceError as error:
        scored.failure = first_line(error)
    except Exception as error:
        # a program that fails is out, and the search goes on
        scored.failure = f"{type(error).__name__}: {first_line(error)}"
    else:
        scored.before.append(scorer.units(before, batch))
        scored.after.append(scorer.units(after, batch))


def samples_needed(max_drop: float) -> int:
    """About how many samples prove that a mean score drops by at most `max_drop`, a fraction, where few change."""
    unchanged = PairedLoss(
        num_images=1, top1_before=1, top1_after=1, lost=0, gained=0, bound=1.0, confidence=CONFIDENCE
    )
    return round(SPARE * (images_to_prove(unchanged, max_drop) or MAX_SAMPLES))


def unproven(loss: ScoreLoss, max_drop: float) -> str:
    """Why a candidate is not proven, and how many samples are needed where even an unchanged score would not be."""
    bound = f"it may lose {100 * loss.bound:.2f} points, {100 * max_drop:g} are allowed"
    needed = samples_needed(max_drop)
    more = f"; about {needed:,} are needed" if loss.num_samples < needed else ""
    return f"not proven: {bound} ({loss.num_samples:,} samples, {100 * loss.drop:.2f} points lost{more})"


def num_affordable(finalist_ms: Sequence[float], original_ms: float, *, samples: int, seconds: float) -> int:
    """How many of the first finalists can be scored on so many samples in that time; at least one, if there are any.

    finalist_ms, original_ms: for each sample. Samples are scored by all finalists at once, beside the original: one too
    many, and none of them gets enough for a proof.
    """
    taken_ms = original_ms + np.cumsum(finalist_ms)
    return max(min(1, len(finalist_ms)), int((taken_ms * samples <= 1e3 * seconds).sum()))


def loss_of(scored: Scored, *, confidence: float = CONFIDENCE) -> ScoreLoss:
    """The drop of the mean score, with a bound: Tango's where all scores are 0 or 1, else by betting."""
    before, after = np.concatenate(scored.before), np.concatenate(scored.after)
    if not np.isin(np.concatenate([before, after]), (0.0, 1.0)).all():
        return score_loss(before, after, confidence=confidence)
    paired = paired_loss(before == 1, after == 1, confidence=confidence)
    return ScoreLoss(
        num_samples=paired.num_images,
        before=paired.top1_before,
        after=paired.top1_after,
        bound=paired.bound,
        confidence=confidence,
    )


def certified_in_order(losses: Sequence[ScoreLoss], max_drop: float) -> int:
    """How many of the first ones are proven to lose at most `max_drop`, a fraction.

    In this order, which was fixed before any of them was looked at, until one is not: the probability that any of them
    is wrongly called proven is 5 % at most, however many there are (Maurer, Hothorn and Lehmacher 1995).
    """
    return next((place for place, loss in enumerate(losses) if loss.bound > max_drop), len(losses))
