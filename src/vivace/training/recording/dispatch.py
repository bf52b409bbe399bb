"""Calls the callbacks of a run: our own, and those of the user, whose errors are caught and named."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vivace.errors import CallbackError, first_line, text_of
from vivace.notices import warn
from vivace.training.recording.callbacks import (
    Callback,
    CheckpointInfo,
    Reporter,
    RunInfo,
    StepInfo,
    StopTraining,
    ValidationInfo,
)
from vivace.training.result import TrainResult

__all__ = ["Dispatcher"]

MAY_STOP = ("on_step", "on_validation", "on_checkpoint")


class Dispatcher:
    """Hands each event to all callbacks, in order.

    own: ours, called first; their exceptions pass as they are. given: the user's. device: the one that trains, whose
    random numbers the user's can't change.

    Each method raises StopTraining where a callback asks for the end of the run, and CallbackError where one fails;
    all callbacks have had the event by then.
    """

    def __init__(self, own: Sequence[Reporter], given: Sequence[Callback] = (), *, device: torch.device) -> None:
        self._own, self._given, self._device = tuple(own), tuple(given), device
        callbacks: list[Callback] = [*own, *given]
        # only those that override on_step cost anything in a step
        self._on_step = [c for c in callbacks if type(c).on_step is not Callback.on_step]
        self._periods = {_period(callback) for callback in self._on_step}
        self._started = False

    def wants_step(self, step: int) -> bool:
        """Whether a callback is to be called after this step."""
        return any(step % period == 0 for period in self._periods)

    def on_start(self, run: RunInfo) -> None:
        """Call each one's `on_start`."""
        self._started = True
        self._call("on_start", run)

    def on_step(self, step: StepInfo) -> None:
        """Call `on_step` of those whose turn it is."""
        self._call("on_step", step, lambda c: c in self._on_step and step.step % c.every_steps == 0)

    def on_validation(self, validation: ValidationInfo) -> None:
        """Call each one's `on_validation`."""
        self._call("on_validation", validation)

    def on_checkpoint(self, checkpoint: CheckpointInfo) -> None:
        """Call each one's `on_checkpoint`."""
        self._call("on_checkpoint", checkpoint)

    def on_message(self, message: str) -> None:
        """Tell our own."""
        for reporter in self._own:
            reporter.on_message(message)

    def on_end(self, result: TrainResult) -> None:
        """Call each one's `on_end`."""
        self._call("on_end", result)

    def on_error(self, error: BaseException) -> None:
        """Call each one's `on_error`; what they raise is a warning. Nothing if the run was never started."""
        for callback in (*self._own, *self._given) if self._started else ():
            try:
                with self._random_numbers_kept():
                    callback.on_error(error)
            except Exception as another:
                warn(f"the callback {_name(callback)} failed in on_error: {_described(another)}")

    def _call(self, method: str, argument: Any, is_called: Callable[[Callback], bool] = lambda _: True) -> None:
        for reporter in filter(is_called, self._own):
            getattr(reporter, method)(argument)
        raised: list[Exception] = []
        for callback in self._given:
            try:
                # a callback's own code too, where every_steps is a property
                with self._random_numbers_kept():
                    if is_called(callback):
                        getattr(callback, method)(argument)
            except Exception as error:
                raised.append(_as_ours(callback, method, error))
        # a failure counts for more than a wish to stop
        if raised:
            raise min(raised, key=lambda error: isinstance(error, StopTraining))

    @contextlib.contextmanager
    def _random_numbers_kept(self) -> Iterator[None]:
        """Restores torch's generators, so that a run is bitwise the same with its callbacks and without."""
        cpu = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        try:
            yield
        finally:
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, self._device)


def _as_ours(callback: Callback, method: str, error: Exception) -> Exception:
    """What the run is told of an exception of a callback."""
    if isinstance(error, StopTraining) and method in MAY_STOP:
        return StopTraining(f"{_name(callback)} ends the training" + (f": {text}" if (text := text_of(error)) else ""))
    if isinstance(error, StopTraining):
        told, advice = "StopTraining can't be raised there", f"Raise it in {', '.join(MAY_STOP)}."
    elif method == "on_end":
        told, advice = _described(error), "The run is complete, and its bundle is written."
    else:
        told, advice = _described(error), "Fix it or leave it out, and continue the run with resume=True."
    ours = CallbackError(f"the callback {_name(callback)} failed in {method}: {told}. {advice}")
    ours.__cause__ = error
    return ours


def _described(error: Exception) -> str:
    """The error's type and first line, and where it was raised: of the user's code no traceback is shown."""
    told = f"{type(error).__name__}: {first_line(error).rstrip('.')}" if text_of(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    return f"{told} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else told


def _period(callback: Callback) -> int:
    try:
        return callback.every_steps
    except Exception as error:
        raise _as_ours(callback, "every_steps", error) from error


def _name(callback: Callback) -> str:
    return type(callback).__name__
