"""Callbacks: code of yours that a training run calls as it goes (no torch here).

    class StopWhenFlat(vivace.Callback):
        def on_validation(self, validation):
            if validation.step - validation.best_step > 2000:
                raise vivace.StopTraining("validation accuracy has been flat for 2,000 steps")

    vivace.train("digits", callbacks=[StopWhenFlat()])

Every method does nothing by default: override those you need. Callbacks are called in the order of the list, in the
thread that trains; the time they take counts as time of the run. What they are given is frozen and holds no tensors.
Random numbers that a callback draws from torch do not change the run.

- `StopTraining`, raised in `on_step`, `on_validation` or `on_checkpoint`, ends the run as if its plan were done: the
  network is validated and its bundle written.
- After any other exception a checkpoint is saved, and the run ends with `CallbackError`, which names the callback;
  resume=True continues the run.
- A resumed run knows nothing of what a callback remembered: `RunInfo.history` tells what came before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.errors import ConfigError, first_line, nearest, shown
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import TrainResult

__all__ = [
    "Callback",
    "CheckpointInfo",
    "Reporter",
    "RunInfo",
    "StepInfo",
    "StopTraining",
    "ValidationInfo",
    "check_callbacks",
]


class StopTraining(Exception):
    """Raised by a callback to end the run early, with its bundle. Its text, the reason, is shown."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What is about to be trained. Accuracies here and below are fractions from 0 to 1."""

    run: Path
    """The run's folder."""
    recipe: Recipe
    """With everything decided that it left to the data and the machine."""
    data: Mapping[str, Any]
    """As in run.json: name, fingerprint, num_images, num_train, num_val, num_test."""
    classes: tuple[str, ...]
    device: str
    """Such as "cpu" or "cuda:0"."""
    num_steps: int | None
    """Optimizer steps of the whole run; None where the time decides."""
    within_seconds: float | None
    target: float | None
    resumed_step: int | None
    """The step whose checkpoint the run continues from; None for a new run."""
    history: tuple[Mapping[str, Any], ...]
    """Earlier validations of a resumed run, a row each, as metrics.csv has them."""


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """Where the run stands after an optimizer step."""

    step: int
    """Steps done, from 1."""
    epoch: float
    """Epochs done, such as 1.25."""
    progress: float
    """Fraction of the plan that is done, [0, 1]."""
    lr: float
    train_loss: float | None
    """Mean since the last validation. None until it is known: on a GPU it is read once in 20 steps."""
    train_top1: float | None
    """With sets of labels: the fraction of the labels that are right."""
    images_per_second: float
    """Of this step."""
    seconds_left: float | None
    """Forecast until the last step; None while it is unknown."""


@dataclass(frozen=True, kw_only=True)
class ValidationInfo:
    """A validation: a row of metrics.csv, and what follows from it."""

    step: int
    epoch: float
    progress: float
    seconds: float
    """Of the training loop, those before a resume included."""
    lr: float
    train_loss: float
    """Mean over the training images since the last validation."""
    val_loss: float
    """Cross-entropy without label smoothing and class weights; of sets of labels, summed over the labels."""
    images_per_second: float
    best_step: int
    """The step that had the best validation first."""
    history: tuple[Mapping[str, Any], ...]
    """All validations of the run so far, this one last, a row each, as metrics.csv has them."""
    train_top1: float = math.nan
    """This and the other accuracies are NaN with sets of labels."""
    val_top1: float = math.nan
    val_macro_f1: float = math.nan
    """Mean F1 of the classes that occur among labels or predictions, each of the same weight."""
    val_balanced_accuracy: float = math.nan
    """Mean recall of the classes that have validation images."""
    best_val_top1: float = math.nan
    """The highest `val_top1` so far, this one included."""
    forecast_top1: float | None = None
    """`val_top1` to expect at the end of the run; None with fewer than 3 validations."""
    train_label_accuracy: float | None = None
    """With sets of labels: the fraction of them that are right, at a threshold of 0.5. None: one class an image."""
    val_map: float | None = None
    """Mean average precision over the labels."""
    best_val_map: float | None = None
    val_robust: float | None = None
    """In adversarial training: the accuracy under PGD of the network that is validated, an upper bound of its
    robustness. None: the run is not adversarial."""
    val_robust_newest: float | None = None
    """The same of the newest weights, whose average is validated."""
    num_probed: int | None = None
    """Held-out images of that probe."""
    num_overfits: int | None = None
    """How often the run went back after catastrophic overfitting so far."""
    forecast_map: float | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """A checkpoint that is on the disk. Only the newest two are kept: copy the file if you need it later."""

    path: Path
    """A safetensors file, whose format may change between versions."""
    step: int
    epoch: float


class Callback:
    """Base class of callbacks; see this module's docstring for what they may do."""

    every_steps: int = 1
    """`on_step` is called after every so many steps. A step may take under a millisecond: be quick, or rare."""

    def on_start(self, run: RunInfo) -> None:
        """Before the first step, once the network is built and the run's folder written."""

    def on_step(self, step: StepInfo) -> None:
        """After an optimizer step, and before the validation or checkpoint that is due then."""

    def on_validation(self, validation: ValidationInfo) -> None:
        """After a validation. The last step of a run is always validated."""

    def on_checkpoint(self, checkpoint: CheckpointInfo) -> None:
        """After a checkpoint was written."""

    def on_end(self, result: TrainResult) -> None:
        """At the end, with the bundle and result.json on the disk."""

    def on_error(self, error: BaseException) -> None:
        """In place of `on_end` where a run that was started ends with an exception, Ctrl-C included.

        The error always reaches the caller; an exception that is raised here is shown as a warning.
        """


class Reporter(Callback):
    """A callback of ours that shows or keeps what the run says, one line at a time."""

    def on_message(self, message: str) -> None:
        """What was measured, a step back after NaN, less memory: for people."""


METHODS = frozenset(name for name in vars(Callback) if name.startswith("on_"))


def check_callbacks(callbacks: object) -> tuple[Callback, ...]:
    """The callbacks as a tuple. Raises ConfigError for what is none, and for methods that would never be called."""
    if isinstance(callbacks, Callback):
        raise ConfigError(f"callbacks is no list: got a {_name(callbacks)}. Give callbacks=[...].")
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str | bytes):
        raise ConfigError(f"callbacks is no list: got {shown(callbacks)}. Give a list of vivace.Callback objects.")
    for number, callback in enumerate(callbacks):
        _check(callback, f"callbacks[{number}]")
    return tuple(callbacks)


def _check(callback: object, place: str) -> None:
    if isinstance(callback, type):
        raise ConfigError(f"{place} is a class: got {callback.__name__}. Give an object: {callback.__name__}().")
    if not isinstance(callback, Callback):
        raise ConfigError(f"{place} is no callback: got {shown(callback)}. Derive its class from vivace.Callback.")
    for name in dir(type(callback)):
        if name.startswith("on_") and name not in METHODS:
            known = ", ".join(sorted(METHODS))
            hint = nearest(name, METHODS)
            raise ConfigError(f"{place}: {_name(callback)}.{name} would never be called.{hint} Known: {known}.")
    try:
        every = callback.every_steps
    except Exception as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"{place}: every_steps can't be read: {told}. Give 1 or more.") from error
    if type(every) is not int or every < 1:
        raise ConfigError(f"{place}: every_steps is no whole number of steps: got {shown(every)}. Give 1 or more.")


def _name(callback: object) -> str:
    return type(callback).__name__
