"""Warnings at the end of a run: pure functions of its counts (no torch here)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vivace.statistics.proportions import binomial_pvalue
from vivace.training.result import Robust

__all__ = ["Outcome", "outcome_warnings"]

# a time budget counts as missed beyond this fraction of it
MAX_EXCESS = 0.05
# a run that computes keeps more than one processor busy: below this share of its time it waited for something
LEAST_WORK = 0.7
# significance level: a validation accuracy that chance reaches more often than this is no evidence of learning
MAX_CHANCE = 0.05
# below this many validation images, no evidence of learning is no evidence of its absence
FEW_IMAGES = 20
# a mAP that is not above that of random answers by this factor is no evidence of learning either
MIN_GAIN = 1.1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, in counts and seconds."""

    epochs: float
    num_train: int
    num_images_seen: int
    num_right: int
    """Validation images that the saved network classifies correctly, of `num_val`."""
    num_val: int
    num_val_commonest: int
    """Validation images of their most common class."""
    commonest: str
    """The name of that class."""
    score: float | None = None
    """What the target is about: top-1 accuracy, or of sets of labels mAP, whose `num_right` means nothing."""
    multi_label: bool = False
    chance: float | None = None
    """The mAP to expect of random answers: the mean fraction of the images that have a label."""
    within_seconds: float | None = None
    total_seconds: float = 0.0
    train_seconds: float = 0.0
    """Of them, those of the training loop."""
    cpu_seconds: float | None = None
    """In which a processor worked for the run, all processors together; None: not known, as of a resumed run."""
    target: float | None = None
    target_reached: bool = False
    target_seen: bool = False
    """Whether a validation during training reached it."""
    num_rollbacks: int = 0
    lr_scale: float = 1.0
    num_overfits: int = 0
    robust: Robust | None = None
    """Of adversarial training."""


def outcome_warnings(outcome: Outcome) -> tuple[str, ...]:
    """A line for each problem that a reader of the accuracies must know; empty if there is none."""
    return (*_chance(outcome), *_length(outcome), *_budget(outcome), *_rollbacks(outcome), *_robust(outcome))


def _chance(outcome: Outcome) -> Iterator[str]:
    """A one-sided binomial test at 5 % against always predicting the most common class."""
    right, images = outcome.num_right, outcome.num_val
    if outcome.multi_label:
        if outcome.score is not None and outcome.chance is not None and outcome.score <= MIN_GAIN * outcome.chance:
            yield (
                f"the network may have learnt nothing: validation ended at a mAP of {outcome.score:.3f}, and random "
                f"answers give {outcome.chance:.3f}. {_advice(outcome)}"
            )
        return
    rate = outcome.num_val_commonest / images
    chance = binomial_pvalue(right, images, rate)
    if chance > MAX_CHANCE and right == images:
        # the network may be perfect: there are too few images, or nearly all of them are of one class
        yield (
            f"validation can't tell whether the network has learnt anything: all {images:,} images are right, and "
            f"always answering {outcome.commonest[:60]!r} gives {100 * rate:.1f} % (p = {chance:.2g}). Hold out more "
            "images, of all classes."
        )
    elif chance > MAX_CHANCE and images < FEW_IMAGES:
        yield (
            f"{images:,} validation images can't tell whether the network has learnt anything: {right:,} are right, "
            f"always answering {outcome.commonest[:60]!r} gives {100 * rate:.1f} % (p = {chance:.2g}). Hold out more."
        )
    elif chance > MAX_CHANCE:
        yield (
            f"the network may have learnt nothing: {right:,} of {images:,} validation images are right "
            f"({100 * right / images:.1f} %), and always answering {outcome.commonest[:60]!r} gives {100 * rate:.1f} % "
            f"(p = {chance:.2g}). {_advice(outcome)}"
        )


def _advice(outcome: Outcome) -> str:
    if outcome.epochs > 0:
        return "Look at the learning rate, the length of the run and the labels."
    return "Look at the labels, or give more time or `epochs` to train more than the head."


def _length(outcome: Outcome) -> Iterator[str]:
    # without a step the head was solved on all images
    if outcome.epochs < 1 and outcome.num_images_seen < outcome.num_train:
        yield (
            f"the run ended after {outcome.epochs:.2g} epochs: it has seen {outcome.num_images_seen:,} of "
            f"{outcome.num_train:,} training images. Give it more time."
        )


def _budget(outcome: Outcome) -> Iterator[str]:
    within, took = outcome.within_seconds, outcome.total_seconds
    if within is not None and took > (1 + MAX_EXCESS) * within:
        yield (
            f"the time budget was missed: {took:.1f} s of {within:g} s ({100 * took / within:,.0f} %), of which "
            f"{max(0.0, took - outcome.train_seconds):.1f} s were starting, reading the data and saving. "
            f"{_waited(outcome)}Give more time; with the same data the next run starts sooner."
        )
    if outcome.target is not None and not outcome.target_reached:
        accuracy = outcome.num_right / outcome.num_val if not outcome.multi_label else outcome.score
        seen = "the saved bundle is at" if outcome.target_seen else "validation ended at"
        why = ", though a validation during training reached it" if outcome.target_seen else ""
        yield f"the target was not reached: {seen} {accuracy:.4g}, the target is {outcome.target:g}{why}"


def _waited(outcome: Outcome) -> str:
    worked = outcome.cpu_seconds
    if worked is None or worked >= LEAST_WORK * outcome.total_seconds:
        return ""
    return f"A processor worked for it in only {worked:.1f} s: other programs or the disk took the rest. "


def _rollbacks(outcome: Outcome) -> Iterator[str]:
    if outcome.num_rollbacks:
        yield (
            f"the run went back {outcome.num_rollbacks} × after NaN or Inf: its learning rate ended at "
            f"{outcome.lr_scale:g} of what was asked for"
        )


def _robust(outcome: Outcome) -> Iterator[str]:
    found, rate = outcome.robust, outcome.num_val_commonest / outcome.num_val
    if outcome.num_overfits:
        times = "once" if outcome.num_overfits == 1 else f"{outcome.num_overfits} ×"
        yield (
            f"the run went back {times} after catastrophic overfitting, each time with 1.5 × the noise and 0.75 × the "
            "step of its attack. Set attack.noise higher, or `optimizer.lr` lower."
        )
    if found is not None and binomial_pvalue(found.num_right, found.num_images, rate) > MAX_CHANCE:
        yield (
            f"the network is not robust: PGD left {found.num_right:,} of {found.num_images:,} held-out images right "
            f"({100 * found.accuracy:.1f} %), and always answering {outcome.commonest[:60]!r} gives "
            f"{100 * rate:.1f} %. Train for longer, or set attack.eps lower."
        )
