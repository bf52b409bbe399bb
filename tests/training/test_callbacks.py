"""Callbacks: what they are told, what they may do, and what becomes of a run when one fails."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Killed, die_after
from same_weights import assert_same_weights

import vivace
from vivace.errors import CallbackError, ConfigError, Interrupted, TrainingError
from vivace.training.folder.checkpoints import load_checkpoint
from vivace.training.recording.callbacks import METHODS, Callback, StepInfo, StopTraining, ValidationInfo
from vivace.training.recording.dispatch import Dispatcher
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]


class Recorder(Callback):
    """Remembers all that it is told, by the method's name."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def on_start(self, run: Any) -> None:
        self.events.append(("on_start", run))

    def on_step(self, step: Any) -> None:
        self.events.append(("on_step", step))

    def on_validation(self, validation: Any) -> None:
        self.events.append(("on_validation", validation))

    def on_checkpoint(self, checkpoint: Any) -> None:
        self.events.append(("on_checkpoint", checkpoint))

    def on_end(self, result: Any) -> None:
        self.events.append(("on_end", result))

    def on_error(self, error: Any) -> None:
        self.events.append(("on_error", error))

    def of(self, method: str) -> list[Any]:
        return [event for name, event in self.events if name == method]


class Raiser(Callback):
    """Raises an exception in one method, from some step on."""

    def __init__(self, method: str, error: Exception, *, step: int = 0) -> None:
        self.error, self.step = error, step
        setattr(self, method, self._raise)

    def on_step(self, step: Any) -> None:
        """Set for each object: that it is overridden is known by the class."""

    def _raise(self, event: Any) -> None:
        if getattr(event, "step", self.step) >= self.step:
            raise self.error


def test_a_callback_is_told_of_the_whole_run(run_tiny: RunTiny) -> None:
    recorder = Recorder()
    result = run_tiny(callbacks=[recorder])
    names = [name for name, _ in recorder.events]
    # 18 images in batches of 6, three epochs; the run's last checkpoint is that of its last epoch
    epoch = [*["on_step"] * 3, "on_validation", "on_checkpoint"]
    assert names == ["on_start", *epoch * 3, "on_end"]
    (start,) = recorder.of("on_start")
    assert (start.run, start.num_steps, start.resumed_step, start.history) == (result.run, 9, None, ())
    assert (start.data["num_train"], len(start.classes)) == (18, 3)
    assert start.recipe.precision == "fp32"
    steps = recorder.of("on_step")
    assert [step.step for step in steps] == list(range(1, 10))
    assert [step.progress for step in steps] == pytest.approx([step / 9 for step in range(1, 10)])
    assert [step.epoch for step in steps[2::3]] == [1, 2, 3]
    # the averages start anew with each validation, which comes after its step
    assert all(0 < step.train_loss < 20 for step in steps)
    validations = recorder.of("on_validation")
    assert [steps[index].train_loss for index in (2, 5, 8)] == [row.train_loss for row in validations]
    with (result.run / "metrics.csv").open() as file:
        table = [float(row["val_top1"]) for row in csv.DictReader(file)]
    assert [row.val_top1 for row in validations] == pytest.approx(table, rel=1e-5)
    assert [len(row.history) for row in validations] == [1, 2, 3]
    assert validations[-1].best_val_top1 == max(row.val_top1 for row in validations)
    assert [row.forecast_top1 is None for row in validations] == [True, True, False]
    assert [checkpoint.step for checkpoint in recorder.of("on_checkpoint")] == [3, 6, 9]
    assert load_checkpoint(recorder.of("on_checkpoint")[-1].path)["counters"]["finished"]
    assert recorder.of("on_end") == [result]


def test_what_a_callback_is_given_is_frozen_and_holds_no_tensors(run_tiny: RunTiny) -> None:
    recorder = Recorder()
    run_tiny(callbacks=[recorder])
    for _, event in recorder.events:
        with pytest.raises(dataclasses.FrozenInstanceError):
            event.step = 0
        assert not any(isinstance(getattr(event, field.name), torch.Tensor) for field in dataclasses.fields(event))


def test_steps_are_told_every_so_often(run_tiny: RunTiny) -> None:
    recorder = Recorder()
    recorder.every_steps = 4
    run_tiny(callbacks=[recorder])
    assert [step.step for step in recorder.of("on_step")] == [4, 8]


def test_a_step_without_listeners_makes_nothing(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    class OnlyEnd(Callback):
        ended = False

        def on_end(self, result: Any) -> None:
            self.ended = True

    monkeypatch.setattr("vivace.training.loop.engine.step_info", never)
    callback = OnlyEnd()
    run_tiny(callbacks=[callback])
    assert callback.ended


@pytest.mark.parametrize(
    ("method", "at", "last"), [("on_step", 4, 4), ("on_validation", 3, 3), ("on_checkpoint", 5, 5), ("on_step", 9, 9)]
)
def test_stop_training_ends_the_run_with_a_validated_bundle(
    run_tiny: RunTiny, capsys: pytest.CaptureFixture[str], method: str, at: int, last: int
) -> None:
    recorder = Recorder()
    stopper = Raiser(method, StopTraining("good enough"), step=at)
    changes = {"checkpoint_minutes": 1e-9} if method == "on_checkpoint" else {}
    result = run_tiny(changes=changes, callbacks=[stopper, recorder], quiet=False)
    validations = recorder.of("on_validation")
    assert validations[-1].step == last
    assert result.num_images_seen == 6 * last
    assert result.val_top1 == pytest.approx(validations[-1].val_top1)
    assert vivace.load(result.bundle).classes
    assert "Raiser ends the training: good enough" in capsys.readouterr().err
    # every callback has its say, and the checkpoint knows that the run is over
    assert recorder.of("on_step")[-1].step == last
    assert load_checkpoint(recorder.of("on_checkpoint")[-1].path)["counters"]["finished"]


def test_a_stopped_run_can_be_extended(run_tiny: RunTiny) -> None:
    stopped = run_tiny(callbacks=[Raiser("on_step", StopTraining(), step=4)])
    assert stopped.epochs == pytest.approx(4 / 3)
    assert run_tiny(resume=True).epochs == stopped.epochs
    assert run_tiny(resume=True, epochs=4).epochs == 4


@pytest.mark.parametrize("method", ["on_step", "on_validation", "on_checkpoint"])
def test_a_callback_that_fails_ends_a_run_that_can_be_resumed(run_tiny: RunTiny, method: str) -> None:
    unbroken = run_tiny("unbroken")
    recorder = Recorder()
    with pytest.raises(CallbackError) as raised:
        run_tiny("failed", callbacks=[Raiser(method, ValueError("boom\nand more"), step=4), recorder])
    assert str(raised.value) == (
        f"the callback Raiser failed in {method}: ValueError: boom (test_callbacks.py:{line_of('raise self.error')}). "
        "Fix it or leave it out, and continue the run with resume=True."
    )
    assert isinstance(raised.value.__cause__, ValueError)
    assert recorder.events[-1] == ("on_error", raised.value)
    assert not (Path(recorder.of("on_start")[0].run) / "result.json").exists()
    again = Recorder()
    resumed = run_tiny("failed", resume=True, callbacks=[again])
    assert_same_weights(unbroken, resumed)
    # no validation is lost, and none made twice
    seen = [row.step for row in (*recorder.of("on_validation"), *again.of("on_validation"))]
    assert seen == [3, 6, 9]


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip() == text)


def test_a_callback_that_fails_at_the_start_or_the_end_is_named_too(run_tiny: RunTiny) -> None:
    recorder = Recorder()
    with pytest.raises(CallbackError, match=r"failed in on_start: KeyError: 'x' .*resume=True\.$"):
        run_tiny("start", callbacks=[Raiser("on_start", KeyError("x")), recorder])
    assert [name for name, _ in recorder.events] == ["on_start", "on_error"]
    with pytest.raises(CallbackError, match=r"StopTraining can't be raised there. Raise it in on_step, on_validation"):
        run_tiny("stop", callbacks=[Raiser("on_start", StopTraining())])
    with pytest.raises(CallbackError, match=r"failed in on_end: KeyError.*The run is complete, and its bundle is wr"):
        run_tiny("end", callbacks=[Raiser("on_end", KeyError("x")), recorder])
    # the others were told all the same
    (result,) = recorder.of("on_end")
    assert vivace.load(result.bundle).classes
    assert json.loads((result.run / "result.json").read_text())["val_top1"] == result.val_top1
    assert run_tiny("start", resume=True).epochs == 3


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_callback_whose_error_or_period_fails_ends_a_run_that_can_be_resumed(run_tiny: RunTiny) -> None:
    class Mute(Callback):
        def on_validation(self, validation: ValidationInfo) -> None:
            raise MuteError

    class Period(Callback):
        reads = 0

        @property
        def every_steps(self) -> int:  # type: ignore[override]
            self.reads += 1
            if self.reads > 3:
                raise MuteError
            return 1

        def on_step(self, step: StepInfo) -> None:
            pass

    for name, callback in (("mute", Mute()), ("period", Period())):
        with pytest.raises(CallbackError, match=r"failed in on_(step|validation): MuteError \(test_callbacks"):
            run_tiny(name, callbacks=[callback])
        assert run_tiny(name, resume=True).epochs == 3


def test_what_is_no_callback_and_fails_when_it_is_shown_is_refused(run_tiny: RunTiny) -> None:
    class Mute:
        def __repr__(self) -> str:
            raise MuteError

    class Period(Callback):
        @property
        def every_steps(self) -> int:  # type: ignore[override]
            raise MuteError

    with pytest.raises(ConfigError, match=r"^callbacks\[0\] is no callback: got a Mute\. Derive"):
        run_tiny(callbacks=[Mute()])
    with pytest.raises(ConfigError, match=r"^callbacks is no list: got a Mute\. Give"):
        run_tiny(callbacks=Mute())
    with pytest.raises(ConfigError, match=r"^callbacks\[0\]: every_steps can't be read: MuteError"):
        run_tiny(callbacks=[Period()])


def test_an_error_while_telling_of_an_error_is_a_warning(run_tiny: RunTiny, capsys: pytest.CaptureFixture[str]) -> None:
    class Worse(Raiser):
        def on_error(self, error: BaseException) -> None:
            raise RuntimeError("worse")

    with pytest.raises(CallbackError, match="failed in on_validation: ValueError: boom"):
        run_tiny(callbacks=[Worse("on_validation", ValueError("boom"))])
    assert "warning: the callback Worse failed in on_error: RuntimeError: worse (test_" in capsys.readouterr().err


def test_errors_of_the_run_reach_callbacks_and_caller(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_tiny("killed", callbacks=[recorder])
    assert isinstance(recorder.events[-1][1], Killed)

    class Signal(Callback):
        def on_validation(self, validation: Any) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as raised:
        run_tiny("stopped", callbacks=[Signal(), recorder])
    assert recorder.events[-1] == ("on_error", raised.value)
    # what is refused before a run has begun is none of a callback's business
    before = len(recorder.events)
    monkeypatch.setattr(
        "vivace.training.run.prepare_data", lambda *_, **__: (_ for _ in ()).throw(TrainingError("no disk"))
    )
    with pytest.raises(TrainingError, match="no disk"):
        run_tiny("refused", callbacks=[recorder])
    assert len(recorder.events) == before


class Noisy(Callback):
    """Draws random numbers wherever it is called."""

    def __init__(self) -> None:
        for name in METHODS:
            setattr(self, name, lambda _: torch.rand(7))

    def on_step(self, step: Any) -> None: ...


def test_callbacks_do_not_change_the_weights_and_resuming_stays_bitwise(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    # dropout and mixup draw from torch's generators
    changes = {"augment.mixup": 0.2}
    plain = run_tiny("plain", changes)
    assert_same_weights(plain, run_tiny("noisy", changes, callbacks=[Noisy()]))
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            run_tiny("killed", changes, callbacks=[Noisy()])
    recorder = Recorder()
    assert_same_weights(plain, run_tiny("killed", resume=True, callbacks=[Noisy(), recorder]))
    (start,) = recorder.of("on_start")
    assert start.resumed_step == 3
    assert [row["step"] for row in start.history] == [3]


def test_global_random_numbers_are_restored() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Dispatcher([], [Noisy()], device=torch.device("cpu")).on_checkpoint(None)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (Recorder(), r"^callbacks is no list: got a Recorder\. Give callbacks=\[\.\.\.\]\.$"),
        ("Recorder", r"^callbacks is no list: got 'Recorder'"),
        ([Recorder(), Recorder], r"^callbacks\[1\] is a class: got Recorder\. Give an object: Recorder\(\)\.$"),
        ([print], r"^callbacks\[0\] is no callback: got <built-in function print>\. Derive its class from vivace"),
        (
            [type("Typo", (Callback,), {"on_validate": lambda self, x: None})()],
            r"Typo\.on_validate would never be called\. Did you mean 'on_validation'",
        ),
        ([type("Often", (Callback,), {"every_steps": 0})()], r"every_steps is no whole number of steps: got 0"),
    ],
)
def test_what_is_no_callback_is_refused_before_work(run_tiny: RunTiny, callbacks: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_tiny(callbacks=callbacks)


def test_every_method_is_documented_and_does_nothing() -> None:
    assert {"on_start", "on_step", "on_validation", "on_checkpoint", "on_end", "on_error"} == METHODS
    for name in METHODS:
        assert getattr(Callback, name).__doc__
        assert getattr(Callback(), name)(None) is None


def test_the_example_of_the_documentation_works(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text()
    block = page.split("```python\n")[1].split("```")[0]
    # the same call, on data that take no minute
    monkeypatch.setattr(vivace, "train", lambda data, **options: run_tiny(**options, changes={"optimizer.lr": 1e-9}))
    names: dict[str, Any] = {}
    exec(block, names)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    # with that rate no validation is better than the first one
    assert [line.partition(":")[0] for line in printed] == ["epoch 1", "epoch 2", "epoch 3", "epoch 4"]
    assert names["result"].epochs == 4
