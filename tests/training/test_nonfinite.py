"""NaN and Inf are rolled back with half the rate, three times at most, then named (fault 27)."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from judging import judged_as
from killing import Killed
from same_weights import assert_same_weights, bundle_weights

from vivace.errors import ConfigError, NonFiniteError
from vivace.training.folder.checkpoints import load_checkpoint
from vivace.training.loop import engine
from vivace.training.loop import session as build
from vivace.training.loop.engine import Engine
from vivace.training.loop.rollback import Rollback
from vivace.training.loop.step import Stepper
from vivace.training.loop.validation import Validation
from vivace.training.result import TrainResult
from vivace.training.techniques import tasks

RunTiny = Callable[..., TrainResult]


def poison_loss(monkeypatch: pytest.MonkeyPatch, is_poisoned: Callable[[int], bool], value: float = math.nan) -> None:
    """Let the loss of some calls, counted from 0, be NaN or Inf."""
    make_loss = tasks.make_loss
    calls = 0

    def poisoned(*arguments: Any) -> Any:
        loss = make_loss(*arguments)

        def bad(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            result = loss(logits, labels)
            return result * value if is_poisoned(calls - 1) else result

        return bad

    monkeypatch.setattr(tasks, "make_loss", poisoned)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_bad_step_is_rolled_back_and_the_run_ends_well(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], value: float
) -> None:
    poison_loss(monkeypatch, lambda call: call == 4, value)
    result = run_tiny(quiet=False)
    assert result.epochs == 3
    assert all(bool(tensor.isfinite().all()) for tensor in bundle_weights(result).values())
    # call 4 is the second step of the second epoch: back to the end of the first
    message = " ".join(capfd.readouterr().err.split())
    assert "NaN or Inf at step 4: back to step 3 with the rate × 0.5 (try 1 of 3)" in message


def test_the_roll_back_is_saved_and_the_steps_that_were_given_up_are_gone(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(self: Engine, *arguments: Any) -> None:
        if self.counters.num_rollbacks:
            raise Killed
        step(self, *arguments)

    step = Engine._step
    changes = {"checkpoint_minutes": 1e-9}
    with monkeypatch.context() as patch:
        poison_loss(patch, lambda call: call == 5)
        unbroken = run_tiny("unbroken", changes)
    with monkeypatch.context() as patch:
        poison_loss(patch, lambda call: call == 5)
        patch.setattr(Engine, "_step", dying)
        with pytest.raises(Killed):
            run_tiny("killed", changes)
    # steps 4 and 5 were saved too, before the sixth went wrong and the run went back to the end of the first epoch
    saved = sorted((unbroken.run.parent / "killed" / "checkpoints").glob("step-*"))
    assert [path.name for path in saved] == ["step-000000003.safetensors"]
    counters = load_checkpoint(saved[0])["counters"]
    assert (counters["step"], counters["num_rollbacks"], counters["lr_scale"]) == (3, 1, 0.5)
    assert_same_weights(unbroken, run_tiny("killed", resume=True))


def test_the_curves_of_a_run_that_went_back_hold_each_step_once(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_loss(monkeypatch, lambda call: call == 5)
    result = run_tiny(changes={"validate_every": 0.34})
    with (result.run / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 10))


def test_weights_that_were_best_before_a_roll_back_stay_the_best(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_loss(monkeypatch, lambda call: call == 5)
    best: dict[str, torch.Tensor] = {}
    top1 = iter([0.1, 0.2, 0.3, 0.9] + [0.5] * 9)

    def validate(self: Any, execution: Any, model: torch.nn.Module) -> Validation:
        value = next(top1)
        if value == 0.9:
            best.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return judged_as(value)

    monkeypatch.setattr(build.Session, "_validate", validate)
    stored = bundle_weights(run_tiny(changes={"validate_every": 0.34, "early_stopping": 9}))
    assert all(torch.equal(stored[name], best[name]) for name in stored)


def test_each_roll_back_comes_to_the_same_state(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    step = Engine._step

    def recording(self: Engine, *arguments: Any) -> None:
        if self.counters.step == 3:
            tree = self.state.snapshot()
            states.append({**tree, "optimizer": tree["optimizer"]["state"]})
        step(self, *arguments)

    monkeypatch.setattr(Engine, "_step", recording)
    # the second step of the second epoch goes wrong, and so it does in the next two tries
    poison_loss(monkeypatch, lambda call: call in (4, 6, 8))
    run_tiny()
    assert len(states) == 4
    for state in states[1:]:
        for part in ("model", "ema", "optimizer", "generator", "torch_rng"):
            torch.testing.assert_close(state[part], states[0][part], rtol=0, atol=0, msg=part)


def test_what_is_known_of_memory_stays_known_after_a_roll_back(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    accumulate = Stepper._accumulate

    def hungry(self: Stepper, *arguments: Any) -> Any:
        if self.state.counters.step >= 3 and self.micro_batch_size is None:
            raise MemoryError("no more")
        return accumulate(self, *arguments)

    monkeypatch.setattr(Stepper, "_accumulate", hungry)
    poison_loss(monkeypatch, lambda call: call == 6)
    run_tiny(quiet=False)
    messages = capfd.readouterr().err
    assert (messages.count("out of memory"), messages.count("NaN or Inf at step")) == (1, 1)


def test_the_rate_is_halved_and_the_time_kept_after_a_roll_back(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    seconds: list[float] = []
    step = Engine._step

    def recording(self: Engine, *arguments: Any) -> None:
        seconds.append(self.counters.seconds)
        rates.append(self.state.optimizer.param_groups[0]["lr"])
        step(self, *arguments)

    monkeypatch.setattr(Engine, "_step", recording)
    poison_loss(monkeypatch, lambda call: call == 4)
    run_tiny(changes={"schedule.name": "constant", "schedule.warmup": 0.0, "optimizer.lr": 0.04})
    # 4 good steps, the bad one, then the second and third epochs again at half the rate
    assert rates == pytest.approx([0.04] * 5 + [0.02] * 6)
    assert sorted(seconds) == seconds


def test_nan_that_stays_stops_the_run_and_names_the_files(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    poison_loss(monkeypatch, lambda call: call >= 4)
    with pytest.raises(NonFiniteError) as caught:
        run_tiny()
    message = str(caught.value)
    assert "after 3 roll-backs with a halved rate" in message
    # a batch of six: five names and the number of the others
    assert message.count(".png") == 5
    assert "and 1 more" in message
    # the good checkpoint is still there
    assert (tmp_path / "run" / "checkpoints" / "step-000000003.safetensors").is_file()


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, is_spoiled: Callable[[int], bool] = lambda call: True) -> None:
    """Let the gradient of some losses, counted from 0, be infinite; the losses are finite."""
    make_loss = tasks.make_loss
    calls = itertools.count()

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * math.inf if is_spoiled(next(calls)) else gradient

    def spoiled(*arguments: Any) -> Any:
        loss = make_loss(*arguments)
        return lambda logits, labels: Spoil.apply(loss(logits, labels))

    monkeypatch.setattr(tasks, "make_loss", spoiled)


def test_an_infinite_gradient_behind_a_finite_loss_is_seen(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_gradients(monkeypatch)
    with pytest.raises(NonFiniteError, match=r"the loss or a gradient is NaN or Inf near step 0"):
        run_tiny()


def test_fp16_rolls_back_from_nan_and_goes_on_with_its_scale(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    poison_loss(monkeypatch, lambda call: call == 4)
    result = run_tiny(changes={"precision": "fp16"}, quiet=False)
    assert result.epochs == 3
    assert capfd.readouterr().err.count("NaN or Inf at step 4: back to step 3") == 1


def test_fp16_whose_gradients_stay_infinite_at_any_scale_is_stopped(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    # its scaler leaves such steps out: without a limit the run would end well, and have learnt nothing
    spoil_gradients(monkeypatch)
    monkeypatch.setattr(engine, "MAX_SKIPPED", 2)
    with pytest.raises(NonFiniteError, match=r"the loss or a gradient is NaN or Inf near step 2, after 3 roll-backs"):
        run_tiny(changes={"precision": "fp16"})


def test_fp16_whose_gradients_are_infinite_now_and_then_goes_on(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil_gradients(monkeypatch, lambda call: call % 3 != 2)
    monkeypatch.setattr(engine, "MAX_SKIPPED", 2)
    assert run_tiny(changes={"precision": "fp16"}, quiet=False).epochs == 3
    assert "NaN" not in capfd.readouterr().err


def spoil_weights(monkeypatch: pytest.MonkeyPatch, what: str, is_spoiled: Callable[[int], bool]) -> None:
    """Let some steps, counted from 1, leave NaN or Inf behind though loss and gradients were finite."""
    step = Engine._step
    calls = itertools.count(1)

    def spoiling(self: Engine, *arguments: Any) -> None:
        step(self, *arguments)
        if not is_spoiled(next(calls)):
            return
        model, averaged = self.state.model, self.state.averaged_model
        if what == "weights":
            next(model.parameters()).data.view(-1)[0] = math.inf
        elif what == "statistics":
            # in eval mode an infinite variance makes a constant of a map: no answer is NaN
            next(buffer for name, buffer in model.named_buffers() if "running_var" in name)[0] = math.inf
        elif what == "average":
            next(averaged.parameters()).data.view(-1)[0] = math.nan
        else:
            # finite, and so large that the answers are not
            for parameter in averaged.parameters():
                parameter.data.fill_(3e38)

    monkeypatch.setattr(Engine, "_step", spoiling)


WHAT = ["weights", "statistics", "average", "answers"]


@pytest.mark.parametrize("what", WHAT)
def test_what_the_last_step_spoils_is_rolled_back_too(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    spoil_weights(monkeypatch, what, lambda call: call == 9)
    result = run_tiny(quiet=False)
    assert result.epochs == 3
    assert all(bool(tensor.isfinite().all()) for tensor in bundle_weights(result).values())
    message = " ".join(capfd.readouterr().err.split())
    assert "NaN or Inf at step 9: back to step 6 with the rate × 0.5 (try 1 of 3)" in message


@pytest.mark.parametrize("what", WHAT)
def test_what_the_last_step_spoils_each_time_ends_the_run_without_a_bundle(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, what: str
) -> None:
    spoil_weights(monkeypatch, what, lambda call: call >= 9 and call % 3 == 0)
    message = r"^the network's weights, or its answers to validation images, are NaN or Inf near step 9, after 3 roll-"
    with pytest.raises(NonFiniteError, match=message):
        run_tiny(changes={"validate_every": 2.0})
    assert not (tmp_path / "run" / "bundle").exists()
    tree = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-000000006.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in tree["model"].values())


@pytest.mark.parametrize("what", ["weights", "statistics", "average"])
def test_no_checkpoint_holds_what_a_step_has_spoilt(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    # a checkpoint at each step, a validation at the end alone
    spoil_weights(monkeypatch, what, lambda call: call == 5)
    run_tiny(changes={"checkpoint_minutes": 1e-9, "validate_every": 3.0}, quiet=False)
    assert "NaN or Inf at step 5: back to step 3 with the rate" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("lr", [1e4, 1e9, 1e12])
def test_an_absurd_rate_ends_in_one_line(run_tiny: RunTiny, optimizer: str, lr: float) -> None:
    options = {"optimizer.name": optimizer, "optimizer.options": {}, "epochs": 1, "batch_size": 18}
    finite = True
    # no other error, and no bundle that holds NaN
    with contextlib.suppress(NonFiniteError):
        result = run_tiny(changes={**options, "optimizer.lr": lr, "schedule.warmup": 0.0, "calibrate": True})
        finite = all(bool(tensor.isfinite().all()) for tensor in bundle_weights(result).values())
    assert finite
    with pytest.raises(ConfigError, match=r"optimizer\.lr is out of range.*1e\+?12"):
        run_tiny("refused", changes={"optimizer.lr": 1e13})


def test_a_message_of_many_long_names_is_short(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Rollback.__init__

    def renamed(self: Rollback, state: Any, names: Any) -> None:
        made(self, state, [f"{'very/' * 50}{index}.png" for index in range(len(names))])

    monkeypatch.setattr(Rollback, "__init__", renamed)
    poison_loss(monkeypatch, lambda call: True)
    with pytest.raises(NonFiniteError, match=r"….*/\d+\.png and 1 more") as caught:
        run_tiny()
    assert len(str(caught.value)) <= 500
