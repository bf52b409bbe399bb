"""Parts of the network that learn no more from some share of the run on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from killing import unbroken_and_resumed
from same_weights import assert_same_weights

from vivace.errors import ConfigError
from vivace.training.loop.engine import Engine
from vivace.training.result import TrainResult
from vivace.training.techniques import tasks

RunTiny = Callable[..., TrainResult]
# the whitening layer's bias after a third of the 9 steps, the first group after two thirds
CHANGES = {"freeze_after": [0.34, 0.67], "ema_decay": None}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The parameters after each step."""
    states: list[dict[str, torch.Tensor]] = []
    step = Engine._step

    def recording(self: Engine, *arguments: Any) -> None:
        step(self, *arguments)
        states.append({name: p.detach().clone() for name, p in self.state.model.named_parameters()})

    monkeypatch.setattr(Engine, "_step", recording)
    return states


def moved(states: list[dict[str, torch.Tensor]], name: str) -> list[bool]:
    """Whether a parameter was moved by the second step, the third, …"""
    return [not torch.equal(before[name], after[name]) for before, after in pairwise(states)]


def test_each_part_learns_until_its_share_of_the_run(run_tiny: RunTiny, seen: list[dict[str, torch.Tensor]]) -> None:
    run_tiny(changes=CHANGES)
    assert len(seen) == 9
    # step k begins at a progress of k / 9: 4 / 9 is the first one past 0.34, 7 / 9 past 0.67
    assert moved(seen, "whiten.bias") == [True] * 3 + [False] * 5
    assert moved(seen, "groups.0.0.weight") == [True] * 6 + [False] * 2
    assert moved(seen, "groups.1.0.weight") == [True] * 8
    assert moved(seen, "whiten.weight") == [False] * 8


@pytest.mark.parametrize("step", [4, 7])
def test_a_run_that_is_killed_with_frozen_parts_is_resumed_bitwise(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    changes = {**CHANGES, "checkpoint_minutes": 1e-9}
    assert_same_weights(*unbroken_and_resumed(run_tiny, monkeypatch, changes, step))


def test_a_part_that_a_roll_back_brings_to_before_its_share_learns_again(
    run_tiny: RunTiny, seen: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_loss = tasks.make_loss
    calls = iter(range(100))

    def poisoned(*arguments: Any) -> Any:
        loss = make_loss(*arguments)
        # the step at a progress of 5 / 9: back to the end of the first epoch, at 3 / 9
        return lambda logits, labels: loss(logits, labels) * (torch.nan if next(calls) == 5 else 1.0)

    monkeypatch.setattr(tasks, "make_loss", poisoned)
    run_tiny(changes={**CHANGES, "checkpoint_minutes": 1e9})
    # five good steps, then those from the fourth on again: the fourth one moves the bias, the later ones do not
    bias = moved(seen[5:], "whiten.bias")
    assert len(seen) == 5 + 6
    assert not any(bias)
    assert not torch.equal(seen[5]["whiten.bias"], seen[2]["whiten.bias"])


def test_freezing_the_whole_network_is_refused(run_tiny: RunTiny) -> None:
    with pytest.raises(ConfigError, match=r"freeze_after freezes all of fast_cnn: got 4 shares for 4 parts. Give at"):
        run_tiny(changes={"freeze_after": [0.2, 0.4, 0.6, 0.8]})
    with pytest.raises(ConfigError, match=r"freeze_after is out of range: got 0"):
        run_tiny(changes={"freeze_after": [0.0]})
