"""NaN and Inf are rolled back with half the rate, three times at most, then named (fault 27)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from same_weights import bundle_weights

from vivace.errors import NonFiniteError
from vivace.training import build
from vivace.training.engine import Engine
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]


def poison_loss(monkeypatch: pytest.MonkeyPatch, is_poisoned: Callable[[int], bool], value: float = math.nan) -> None:
    """Let the loss of some calls, counted from 0, be NaN or Inf."""
    make_loss = build.make_loss
    calls = 0

    def poisoned(*arguments: Any) -> Any:
        loss = make_loss(*arguments)

        def bad(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            result = loss(logits, labels)
            return result * value if is_poisoned(calls - 1) else result

        return bad

    monkeypatch.setattr(build, "make_loss", poisoned)


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


def test_the_rate_is_halved_after_a_roll_back(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = Engine._step

    def recording(self: Engine, *arguments: Any) -> None:
        rates.append(self.state.optimizer.param_groups[0]["lr"])
        step(self, *arguments)

    monkeypatch.setattr(Engine, "_step", recording)
    poison_loss(monkeypatch, lambda call: call == 4)
    run_tiny(changes={"schedule.name": "constant", "schedule.warmup": 0.0, "optimizer.lr": 0.04})
    # 4 good steps, the bad one, then the second and third epochs again at half the rate
    assert rates == pytest.approx([0.04] * 5 + [0.02] * 6)


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


def test_an_infinite_gradient_behind_a_finite_loss_is_seen(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    make_loss = build.make_loss

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * math.inf

    def spoiled(*arguments: Any) -> Any:
        loss = make_loss(*arguments)
        return lambda logits, labels: Spoil.apply(loss(logits, labels))

    monkeypatch.setattr(build, "make_loss", spoiled)
    with pytest.raises(NonFiniteError, match=r"the loss or a gradient is NaN or Inf near step 0"):
        run_tiny()
