"""Schedules: pure functions from a step to a multiple of the peak learning rate, in [0, 1].

A shape is a function of (config, progress), with progress the fraction of the run that is done, in [0, 1].
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

    The schedule is evaluated at the middle of a step, so that no step has a rate of 0 and a run of one step learns.
    Before the first step and after the last one the values at the ends are used.
    """
    progress = (step + 0.5) / max(total_steps, 1)
    return SCHEDULES[config.name](config, min(max(progress, 0.0), 1.0))


def _after_warmup(shape: Shape) -> Shape:
    """A linear warm-up from `start` to 1, followed by `shape` over the rest of the run."""

    @functools.wraps(shape)
    def warmed(config: ScheduleConfig, progress: float) -> float:
        if progress < config.warmup:
            return config.start + (1 - config.start) * progress / config.warmup
        return shape(config, (progress - config.warmup) / (1 - config.warmup))

    return warmed


def _constant(config: ScheduleConfig, progress: float) -> float:
    return 1.0


def _linear(config: ScheduleConfig, progress: float) -> float:
    return _between(1.0, config.end, progress)


def _cosine(config: ScheduleConfig, progress: float) -> float:
    """Half a cosine from 1 to `end` (arXiv:1608.03983, without restarts)."""
    return _between(1.0, config.end, _half_cosine(progress))


def _step(config: ScheduleConfig, progress: float) -> float:
    """`gamma` to the power of the number of milestones passed; they are fractions of the run after the warm-up."""
    return config.gamma ** sum(progress >= milestone for milestone in config.milestones)


def _trapezoid(config: ScheduleConfig, progress: float) -> float:
    """Linear warm-up, constant, then linear decay to `end` over the last `cooldown` of the run (arXiv:2405.18392)."""
    if progress < config.warmup:
        return _between(config.start, 1.0, progress / config.warmup)
    if progress <= 1 - config.cooldown:
        return 1.0
    return _between(1.0, config.end, (progress - (1 - config.cooldown)) / config.cooldown)


def _one_cycle(config: ScheduleConfig, progress: float) -> float:
    """Half a cosine up over `warmup` (0.3 if it is 0), half a cosine down to `end` (arXiv:1708.07120)."""
    top = config.warmup or 0.3
    if progress < top:
        return _between(config.start, 1.0, _half_cosine(progress / top))
    return _between(1.0, config.end, _half_cosine((progress - top) / (1 - top)))


def _half_cosine(progress: float) -> float:
    """0 to 1, flat at both ends."""
    return (1 - math.cos(math.pi * progress)) / 2


def _between(first: float, last: float, progress: float) -> float:
    return min(1.0, max(0.0, first + (last - first) * progress))


SCHEDULES: dict[str, Shape] = {
    "constant": _after_warmup(_constant),
    "cosine": _after_warmup(_cosine),
    "linear": _after_warmup(_linear),
    "one_cycle": _one_cycle,
    "step": _after_warmup(_step),
    "trapezoid": _trapezoid,
}
