"""The budget of a run (epochs, time, or a target accuracy), its schedule, and a forecast of its final accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivace.hardware import process_seconds
from vivace.optim.config import ScheduleConfig
from vivace.optim.schedules import multiplier
from vivace.training.loop.aim import Aim, LargerNetwork
from vivace.training.loop.state import Counters

__all__ = ["Budget", "Plan", "forecast_top1"]

# a run with a time budget has no fixed number of steps: its schedule has this resolution
RESOLUTION = 1_000_000
# weight of the newest step in the moving average of step times: about the last 20 steps count
SMOOTHING = 0.1
# fraction of the time budget by which the last step may exceed it
MAX_OVERRUN = 0.02


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What limits a run besides its number of epochs."""

    within_seconds: float | None = None
    target: float | None = None
    planned: bool = False
    """Whether the length of the run is planned towards the target; False: a run of its epochs, which may stop early."""


@dataclass(kw_only=True)
class Plan:
    """Computes the progress of a run, its learning rate, and when it ends."""

    epochs: int
    steps_per_epoch: int
    schedule: ScheduleConfig
    within_seconds: float | None = None
    """Wall-clock seconds from process start to saved bundle; None: `epochs` limits the run."""
    target: float | None = None
    """Validation accuracy at which the run stops, (0, 1]."""
    aim: Aim | None = None
    """What the length of the run is planned by, towards its target; None: `epochs` or the time budget decides."""
    reserve_seconds: float = 0.0
    """Time needed after the last step: final batch-norm statistics and validation, test, saving."""
    clock: Callable[[], float] = process_seconds
    """Seconds used so far, those before a resume included."""
    overhead_seconds: float = 0.0
    """Known time per step for validations; if the measured time is higher, that is used."""
    _step_seconds: float | None = field(default=None, repr=False)
    _num_timed: int = field(default=0, repr=False)
    _timed_seconds: float = field(default=0.0, repr=False)
    _first_at: float = field(default=0.0, repr=False)

    def total_steps(self, counters: Counters) -> int:
        """Steps of a run without a time budget; with an aim, as it is planned now."""
        if self.aim is None:
            return self.epochs * self.steps_per_epoch
        return counters.planned_steps or self.aim.first_steps()

    def rate(self, counters: Counters) -> float:
        """The schedule's multiplier for the step that comes next."""
        if self.within_seconds is None:
            return multiplier(self.schedule, counters.step, self.total_steps(counters))
        return multiplier(self.schedule, round(counters.progress * RESOLUTION), RESOLUTION)

    def advance(self, counters: Counters, seconds: float) -> None:
        """Update `counters.progress` after a step that took `seconds`; the time between steps comes from the clock."""
        if self.within_seconds is None:
            counters.progress = min(1.0, counters.step / self.total_steps(counters))
            return
        left, step = self.remaining_seconds(), max(self._seconds_per_step(seconds), 1e-6)
        steps_left = left / step
        # exceeding the budget by half a step matters if a step takes a minute
        over = steps_left < 0.5 or step - left > MAX_OVERRUN * self.within_seconds
        if self.aim is not None:
            planned = self.total_steps(counters) - counters.step
            over, steps_left = over or planned <= 0, min(steps_left, planned - 1)
        counters.progress = 1.0 if over else min(1.0, counters.progress + (1 - counters.progress) / (steps_left + 1))

    def is_due(self, before: float, counters: Counters, every_steps: int) -> bool:
        """Whether the run is validated after a step before which its progress was `before`."""
        if self.finished(counters):
            return True
        if self.aim is None:
            return counters.step % every_steps == 0
        return self.aim.is_due(before, counters.progress, self.total_steps(counters))

    def replan(self, counters: Counters) -> str | None:
        """Plan anew after a validation, in `counters`; returns a message where the plan has changed.

        Raises LargerNetwork where starting again with one is expected to be faster. Nothing without an aim.
        """
        if self.aim is None or counters.target_seconds is not None or counters.stopped_early or not counters.history:
            return None
        steps = self.total_steps(counters)
        new = self.aim.replan(counters.history, steps)
        told = f"target {self.target:g}: {new.told(counters.history[-1], self.steps_per_epoch)}"
        if self.aim.is_faster(new, counters.history[-1]):
            raise LargerNetwork(new.choice, f"{told}: starting again with {new.choice.network.name}")
        if new.steps == steps:
            return None
        counters.planned_steps = new.steps
        if self.within_seconds is None or counters.progress >= 1:
            # the learning rate is that of a run of the length that is planned now
            counters.progress = min(1.0, counters.step / new.steps)
        return told

    def forecast(self, counters: Counters) -> float | None:
        """The validation accuracy to expect at the end of the run; None where it is unknown."""
        if self.aim is None:
            return forecast_top1(counters.history, counters.progress)
        return self.aim.forecast(counters.history, self.total_steps(counters))

    def _seconds_per_step(self, newest: float) -> float:
        """Expected time per step: the step itself plus its part of validations, checkpoints and callbacks."""
        now, old = self.clock(), self._step_seconds
        self._num_timed += 1
        if old is None or self._num_timed <= 3:
            # the first steps are slower (caches, kernel selection): the average must forget them soon
            self._step_seconds = newest
        else:
            self._step_seconds = old + SMOOTHING * (newest - old)
        if old is None:
            self._first_at = now
            return newest + self.overhead_seconds
        self._timed_seconds += newest
        # from sums, not per step: the resolution of the clock may be coarser than a step
        between = max(0.0, now - self._first_at - self._timed_seconds) / (self._num_timed - 1)
        return self._step_seconds + max(self.overhead_seconds, between)

    def remaining_seconds(self) -> float:
        """Time left for steps; only with a time budget."""
        assert self.within_seconds is not None
        return self.within_seconds - self.reserve_seconds - self.clock()

    def finished(self, counters: Counters) -> bool:
        """Whether the run is over: its budget is used up or its target reached."""
        if counters.target_seconds is not None and self.target is not None:
            return True
        total = self.total_steps(counters)
        if self.within_seconds is None or total == 0:
            return counters.step >= total
        return counters.progress >= 1.0

    def seconds_left(self, counters: Counters) -> float | None:
        """A forecast of the seconds until the last step; None before the first step."""
        if self.within_seconds is not None:
            return max(0.0, self.remaining_seconds())
        if counters.step == 0 or counters.seconds == 0:
            return None
        # never negative: a run that was stopped early may have done more steps than it has now
        return counters.seconds / counters.step * max(0, self.total_steps(counters) - counters.step)


def forecast_top1(history: Sequence[dict[str, Any]], progress: float) -> float | None:
    """The validation accuracy to expect at the end of the run, in [0, 1]; None with fewer than 3 validations.

    history: rows with "step" and "val_top1"; the last one was recorded when the fraction `progress` of the run was
    done. The progress of the others follows from their steps: in an extended run their recorded progress is that of a
    shorter run.

    Fits accuracy = a - b · progress^-c to the validations by least squares, with c from a grid. The gain from the final
    decay of the learning rate is not modelled, so forecasts tend to be low for schedules that decay late.
    """
    # what came before the first step is no point of the curve
    history = [row for row in history if row["step"] > 0]
    if len(history) < 3 or progress <= 0:
        return None
    steps, top1 = np.array([(row["step"], row.get("val_map", row.get("val_top1"))) for row in history], dtype=float).T
    if steps.min() <= 0:
        return None
    fraction = steps / steps[-1] * progress
    # later points say more about the end
    weight = np.sqrt(fraction)
    best: tuple[float, float] | None = None
    for power in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0):
        columns = np.stack([np.ones_like(fraction), -(fraction**-power)], axis=1)
        solution, *_ = np.linalg.lstsq(columns * weight[:, None], top1 * weight, rcond=None)
        error = float((((columns @ solution) - top1) ** 2 * weight).sum())
        if best is None or error < best[0]:
            best = (error, float(solution[0] - solution[1]))
    assert best is not None
    return float(np.clip(best[1], 0.0, 1.0))
