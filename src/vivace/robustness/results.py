"""What corruptions and attacks left of a bundle's accuracy: plain values, for people, JSON and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vivace.config import to_dict
from vivace.statistics.proportions import wilson_interval

__all__ = ["Corruptions", "Score", "score_of"]


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


def score_of(hits_N: np.ndarray) -> Score:
    """The mean of independent values in [0, 1], one of each image, with Wilson's 95 % interval.

    An image's value may be a mean over corruptions. The interval is then too wide, never too narrow: values between 0
    and 1 vary less than 0 and 1 alone with the same mean.
    """
    low, high = wilson_interval(float(np.sum(hits_N)), len(hits_N))
    return Score(accuracy=float(np.mean(hits_N)), low=low, high=high)
