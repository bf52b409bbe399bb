"""What corruptions and attacks left of a bundle's accuracy: plain values, for people, JSON and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vivace.config import to_dict
from vivace.statistics.proportions import wilson_interval

__all__ = ["AttackStep", "Attacked", "Corruptions", "Score", "score_of"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """An accuracy with its 95 % interval, in [0, 1]."""

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Corruptions:
    """Accuracy under common corruptions (Hendrycks & Dietterich 2019, arXiv:1903.12261), of the same images."""

    num_images: int
    constants: str
    """Whose severities: "CIFAR-10-C" for images up to 64 px, else "ImageNet-C"."""
    seed: int
    clean: Score
    mean: Score
    """Over all corruptions and severities, each of the same weight."""
    families: dict[str, Score]
    """noise, blur, weather, digital."""
    corruptions: dict[str, Score]
    """By name, over the severities."""
    severities: dict[str, Score]
    """"1" to "5", over the corruptions."""
    cells: dict[str, tuple[float, ...]]
    """By name: the accuracy at each severity."""
    left_out: tuple[str, ...]
    """Corruptions of the published fifteen that were not measured."""
    seconds: float

    @property
    def relative(self) -> float:
        """The mean as a fraction of the accuracy on the same images as they are; NaN where that is 0."""
        return self.mean.accuracy / self.clean.accuracy if self.clean.accuracy else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**to_dict(self), "relative": self.relative}


@dataclass(frozen=True, kw_only=True)
class AttackStep:
    """What one attack of a suite did to the images that were left to it."""

    name: str
    """fgsm, pgd (both of all correct images), apgd-ce, apgd-t, fab-t or square."""
    num_attacked: int
    num_fooled: int
    robust_so_far: float
    """Fraction of all images that nothing has fooled the network on, after this attack."""
    num_refused: int
    """Results that did not hold when they were checked, and were not counted."""
    is_complete: bool
    """Whether it had all the time that it wanted."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """The accuracy that attacks left of a bundle's network: the worst case over all attacks."""

    threat: str
    """Such as "linf:8/255"."""
    norm: str
    eps: float
    """On pixels in [0, 1]."""
    num_images: int
    seed: int
    clean: Score
    """Of the network on these images as they are."""
    robust: Score
    """An image counts if it is classified correctly and nothing that was tried changed that: an upper bound."""
    is_standard: bool
    """Whether all of AutoAttack's standard suite ran to its end; without it the bound is loose."""
    is_complete: bool
    """Whether every attack that was asked for ran to its end."""
    cut_off_by: str | None
    """What ended attacks before: "within", the time for them, "SIGINT" or "SIGTERM"; None: they are complete."""
    network: str
    """float32: the network behind the bundle, with gradients; or "answers alone"."""
    search: str
    """fp32, or bf16: points were looked for with a copy of the network that multiplies in bf16, and count because they
    fool the float32 network."""
    attacks: tuple[AttackStep, ...]
    deployed: Score | None
    """Of the bundle as it runs, shown what fooled the network in 8 bits; None: it runs as the network attacked."""
    deployed_as: str
    """Its runtime and precision."""
    warnings: tuple[str, ...]
    """Signs that the true robustness is lower still."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return to_dict(self)


def score_of(hits_N: np.ndarray) -> Score:
    """The mean of independent values in [0, 1], one of each image, with Wilson's 95 % interval.

    An image's value may be a mean over corruptions. The interval is then too wide, never too narrow: values between 0
    and 1 vary less than 0 and 1 alone with the same mean.
    """
    low, high = wilson_interval(float(np.sum(hits_N)), len(hits_N))
    return Score(accuracy=float(np.mean(hits_N)), low=low, high=high)
