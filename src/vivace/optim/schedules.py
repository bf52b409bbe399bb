"""Schedules: pure functions from a step to a multiple of the peak learning rate, in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

from vivace.optim.config import ScheduleConfig

__all__ = ["SCHEDULES", "multiplier"]


def multiplier(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The learning rate's multiple of its peak at `step`, counted from 0, of `total_steps`."""
    share = min(max(step / max(total_steps, 1), 0.0), 1.0)
    if config.name == "one_cycle":
        return _one_cycle(config, share)
    if share < config.warmup:
        return config.start + (1 - config.start) * share / config.warmup
    # what is left after the warm-up, as a share
    rest = (share - config.warmup) / (1 - config.warmup)
    return SCHEDULES[config.name](config, rest)


def _constant(config: ScheduleConfig, rest: float) -> float:
    return 1.0


def _linear(config: ScheduleConfig, rest: float) -> float:
    return 1 + (config.end - 1) * rest


def _cosine(config: ScheduleConfig, rest: float) -> float:
    """Half a cosine from 1 to `end` (arXiv:1608.03983, without restarts)."""
    return config.end + (1 - config.end) * (1 + math.cos(math.pi * rest)) / 2


def _step(config: ScheduleConfig, rest: float) -> float:
    passed = sum(rest >= milestone for milestone in config.milestones)
    return config.gamma**passed


def _trapezoid(config: ScheduleConfig, rest: float) -> float:
    """Flat, then a line down to `end` over the last `cooldown` of the whole run (arXiv:2405.18392)."""
    cooldown = min(1.0, config.cooldown / (1 - config.warmup))
    if rest <= 1 - cooldown:
        return 1.0
    return 1 + (config.end - 1) * (rest - (1 - cooldown)) / cooldown


def _one_cycle(config: ScheduleConfig, share: float) -> float:
    """Half a cosine up over `warmup` (0.3 where it is 0), half a cosine down to `end` (arXiv:1708.07120)."""
    top = config.warmup or 0.3
    if share < top:
        return config.start + (1 - config.start) * (1 - math.cos(math.pi * share / top)) / 2
    return _cosine(config, (share - top) / (1 - top))


SCHEDULES: dict[str, Callable[[ScheduleConfig, float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "one_cycle": _cosine,
    "step": _step,
    "trapezoid": _trapezoid,
}
