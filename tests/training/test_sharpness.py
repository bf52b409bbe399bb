"""Runs with sharpness-aware steps: resumed to the last bit, in micro-batches, in low precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from killing import unbroken_and_resumed
from same_weights import assert_same_weights, bundle_weights
from torch import nn

from vivace.training.loop.step import Stepper
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_resumed_run_is_bitwise_the_unbroken_one(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, adaptive: bool
) -> None:
    changes = {"optimizer.sam": 0.5, "optimizer.sam_adaptive": adaptive, "checkpoint_minutes": 1e-9}
    unbroken, resumed = unbroken_and_resumed(run_tiny, monkeypatch, changes, 5)
    assert_same_weights(unbroken, resumed)


def test_each_step_takes_two_gradients_and_gives_other_weights(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    gradients = Stepper._gradients

    def counted(self: Stepper, *arguments: Any) -> Any:
        calls.append(self.state.counters.step)
        return gradients(self, *arguments)

    monkeypatch.setattr(Stepper, "_gradients", counted)
    sharp = run_tiny("sharp", {"optimizer.sam": 0.05, "epochs": 1})
    assert calls == [0, 0, 1, 1, 2, 2]
    plain = bundle_weights(run_tiny("plain", {"epochs": 1}))
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in bundle_weights(sharp).items())


class Plain(nn.Sequential):
    """A linear network: without batch norm, whose statistics depend on the micro-batch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))


def test_micro_batches_add_up_to_the_batch(run_tiny: RunTiny) -> None:
    changes = {"augment.mixup": 0, "ema_decay": None, "optimizer.name": "sgd", "optimizer.options": {}}
    changes |= {"optimizer.sam": 0.5, "epochs": 2}
    whole = bundle_weights(run_tiny("whole", changes, model=Plain))
    split = bundle_weights(run_tiny("split", {**changes, "micro_batch_size": 2}, model=Plain))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, split[name], rtol=1e-4, atol=1e-5)


def test_it_goes_with_bf16_and_with_attacks(run_tiny: RunTiny) -> None:
    changes = {"optimizer.sam": 0.05, "precision": "bf16", "channels_last": True, "attack.eps": 8, "epochs": 1}
    result = run_tiny(changes=changes)
    assert result.robust is not None
    assert all(bool(tensor.isfinite().all()) for tensor in bundle_weights(result).values())
