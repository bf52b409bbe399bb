"""Schedules: pure functions from a step to a multiple of the peak learning rate, in [0, 1].

A shape is a function of (config, share): how much of the run is over, in [0, 1].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from vivace.optim.config import ScheduleConfig

__all__ = ["SCHEDULES", "multiplier"]

Shape = Callable[[ScheduleConfig, float], float]


def multiplier(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The learning rate's multiple of its peak at `step`, counted from 0, of `total_steps` >= 1; in [0, 1].

    A step's rate is the one at its middle: no step is spent at a rate of 0, and a run of one step learns. Before the
    first step and after the last it is that of the ends.
    """
    share = (step + 0.5) / max(total_steps, 1)
    return SCHEDULES[config.name](config, min(max(share, 0.0), 1.0))


def _after_warmup(shape: Shape) -> Shape:
    """`shape` over what a straight warm-up from `start` to 1 leaves of the run."""

    @functools.wraps(shape)
    def warmed(config: ScheduleConfig, share: float) -> float:
        if share < config.warmup:
            return config.start + (1 - config.start) * share / config.warmup
        return shape(config, (share - config.warmup) / (1 - config.warmup))

    return warmed


def _constant(config: ScheduleConfig, share: float) -> float:
    return 1.0


def _linear(config: ScheduleConfig, share: float) -> float:
    return _between(1.0, config.end, share)


def _cosine(config: ScheduleConfig, share: float) -> float:
    """Half a cosine from 1 to `end` (arXiv:1608.03983, without restarts)."""
    return _between(1.0, config.end, _half_cosine(share))


def _step(config: ScheduleConfig, share: float) -> float:
    """`gamma` to the power of the milestones that are passed; they count from the end of the warm-up."""
    return config.gamma ** sum(share >= milestone for milestone in config.milestones)


def _trapezoid(config: ScheduleConfig, share: float) -> float:
    """Up, flat, then straight down to `end` over the last `cooldown` of the whole run (arXiv:2405.18392)."""
    if share < config.warmup:
        return _between(config.start, 1.0, share / config.warmup)
    if share <= 1 - config.cooldown:
        return 1.0
    return _between(1.0, config.end, (share - (1 - config.cooldown)) / config.cooldown)


def _one_cycle(config: ScheduleConfig, share: float) -> float:
    """Half a cosine up over `warmup` (0.3 where it is 0), half a cosine down to `end` (arXiv:1708.07120)."""
    top = config.warmup or 0.3
    if share < top:
        return _between(config.start, 1.0, _half_cosine(share / top))
    return _between(1.0, config.end, _half_cosine((share - top) / (1 - top)))


def _half_cosine(share: float) -> float:
    """0 to 1, flat at both ends."""
    return (1 - math.cos(math.pi * share)) / 2


def _between(first: float, last: float, share: float) -> float:
    return min(1.0, max(0.0, first + (last - first) * share))


SCHEDULES: dict[str, Shape] = {
    "constant": _after_warmup(_constant),
    "cosine": _after_warmup(_cosine),
    "linear": _after_warmup(_linear),
    "one_cycle": _one_cycle,
    "step": _after_warmup(_step),
    "trapezoid": _trapezoid,
}
