"""Plans the length of a run towards a target accuracy: before its first step, and again after each validation.

The run is planned as one with a fixed length: its learning rate decays to the end of the plan. Each validation gives a
forecast of what the end would have, and the plan is made longer or shorter, which moves the learning rate: so the decay
can begin, or be put off, at any time. All of it follows from the validations alone, not from a clock: a resumed run
plans the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from vivace.training.recipes.expected import (
    MAX_LENGTH,
    Choice,
    Network,
    cheapest,
    logit,
    network_of,
    networks_for,
    top1_of,
)
from vivace.training.recipes.recipe import Recipe

__all__ = ["Aim", "LargerNetwork", "Replanned", "aim_of"]

# how much easier or harder than the measured ones other data are, as the standard deviation of the logit
PRIOR = 0.8
# standard deviations of the forecast by which a plan is longer than is expected to be enough; at most by this factor
CAUTION, MAX_CAUTION = 0.7, 1.12
# progress at which runs are validated; those of the second tuple only where a validation costs less than MAX_COST
MARKS, MORE_MARKS, MAX_COST = (0.5, 0.8, 0.92), (0.3, 0.4, 0.6, 0.7, 0.86, 0.96), 0.01
# what a forward pass costs of a training step of as many images
FORWARD = 1 / 3
# a plan is not changed by less than this fraction
MIN_CHANGE = 0.04
# a plan has at least one epoch, or so many steps
MIN_STEPS = 50
# a decay takes at least this fraction of the steps so far
MIN_DECAY = 0.1
# a larger network must need this many times less time than the rest of the run; from this progress on
MIN_GAIN, SWITCH_FROM = 1.3, 0.45


class LargerNetwork(Exception):
    """Raised by a run to be started again with a larger network, which is expected to reach the target sooner."""

    def __init__(self, choice: Choice, message: str) -> None:
        super().__init__(message)
        self.choice = choice


@dataclass(frozen=True, kw_only=True)
class Replanned:
    """The plan after a validation."""

    steps: int
    """Steps of the whole run."""
    forecast_top1: float
    """Validation accuracy to expect at its end."""
    choice: Choice
    """The cheapest run that is expected to reach the target: of this network, or of a larger one."""

    def told(self, row: Mapping[str, Any], steps_per_epoch: int) -> str:
        """The validation in `row`, and the plan, in words."""
        return (
            f"{100 * row['val_top1']:.1f} % after {row['step'] / steps_per_epoch:.2g} epochs, "
            f"{100 * self.forecast_top1:.1f} % expected after {self.steps / steps_per_epoch:.2g}"
        )


@dataclass(frozen=True, kw_only=True)
class Aim:
    """The target of a run, and what is known about its network."""

    target: float
    network: Network
    larger: tuple[Network, ...]
    """Networks that the run may be started again with."""
    full_steps: int
    """Steps of a run of length 1."""
    num_val: int
    validation_steps: float
    """What a validation costs, as a number of training steps."""
    min_steps: int = 1
    """No plan is shorter."""

    def first_steps(self) -> int:
        """Steps of the first plan."""
        return self._steps(min(MAX_LENGTH, self._cautious(logit(self.target), PRIOR)))

    def told(self, steps: int, steps_per_epoch: int) -> str:
        """The plan in words, before the first step."""
        expected = top1_of(self.network.logit(steps / self.full_steps))
        return (
            f"target {self.target:g}: {steps / steps_per_epoch:.2g} epochs planned, {self.network.name}: "
            f"{100 * expected:.0f} % where it was measured"
        )

    def is_due(self, before: float, progress: float, steps: int) -> bool:
        """Whether a run of `steps` is validated after a step that took its progress from `before` to `progress`."""
        marks = MARKS + (MORE_MARKS if self.validation_steps <= MAX_COST * steps else ())
        return any(before < mark <= progress for mark in marks)

    def replan(self, history: Sequence[Mapping[str, Any]], steps: int) -> Replanned:
        """The plan after the newest validation, which missed the target, of a run that was planned for `steps`."""
        shift, deviation = self.shift(history)
        step = int(history[-1]["step"])
        wanted = logit(self.target)
        length = min(MAX_LENGTH, self._cautious(wanted - shift, deviation))
        planned, soonest = self._steps(length), step + max(1, round(MIN_DECAY * step))
        if steps > step and (planned < steps <= soonest or abs(planned - steps) < MIN_CHANGE * steps):
            planned = steps
        elif planned < soonest:
            planned = soonest
        planned = max(step, min(planned, self._steps(MAX_LENGTH)))
        choice = cheapest((self.network, *self.larger), wanted, shift=shift)
        return Replanned(steps=planned, forecast_top1=self.forecast(history, planned), choice=choice)

    def forecast(self, history: Sequence[Mapping[str, Any]], steps: int) -> float:
        """The validation accuracy to expect at the end of a run of `steps`."""
        return top1_of(self.network.logit(steps / self.full_steps) + self.shift(history)[0])

    def shift(self, history: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
        """(mean, standard deviation) of how much higher the logits are than expected, given the validations so far."""
        precision, total = PRIOR**-2, 0.0
        for row in history:
            gap, spread = self.network.gap(row["progress"])
            length = row["step"] / max(row["progress"], 1e-9) / self.full_steps
            top1 = min(max(row["val_top1"], 0.01), 0.99)
            variance = spread**2 + 1 / (self.num_val * top1 * (1 - top1))
            total += (logit(row["val_top1"]) + gap - self.network.logit(length)) / variance
            precision += 1 / variance
        return total / precision, sqrt(1 / precision)

    def is_faster(self, replanned: Replanned, row: Mapping[str, Any]) -> bool:
        """Whether a run of the larger network of the plan takes less time than the rest of this one.

        row: the newest validation.
        """
        choice = replanned.choice
        if choice.network is self.network or row["progress"] < SWITCH_FROM:
            return False
        rest = self.network.cost * (replanned.steps - row["step"]) / self.full_steps
        unreachable = replanned.forecast_top1 < self.target and replanned.steps >= self._steps(MAX_LENGTH)
        return (choice.reaches or unreachable) and (unreachable or MIN_GAIN * choice.cost < rest)

    def _cautious(self, wanted: float, deviation: float) -> float:
        """A length that probably is enough for a logit whose forecast has a standard deviation."""
        return min(self.network.length(wanted + CAUTION * deviation), MAX_CAUTION * self.network.length(wanted))

    def _steps(self, length: float) -> int:
        return max(self.min_steps, round(length * self.full_steps))


def aim_of(
    recipe: Recipe, target: float, *, steps_per_epoch: int, batch_size: int, num_val: int, may_grow: bool
) -> Aim:
    """The aim of a run of the recipe. may_grow: it may be started again with a larger network."""
    network = network_of(recipe)
    networks = networks_for(network)
    return Aim(
        target=target,
        network=network,
        larger=networks[networks.index(network) + 1 :] if may_grow else (),
        full_steps=recipe.epochs * steps_per_epoch,
        num_val=num_val,
        validation_steps=FORWARD * num_val / batch_size,
        min_steps=min(steps_per_epoch, MIN_STEPS),
    )
