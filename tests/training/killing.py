"""Ending a run without warning, or making it go back, inside one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vivace.training.loop.engine import Engine
from vivace.training.loop.state import TrainState
from vivace.training.result import TrainResult


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is saved."""


def die_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the loop die after so many optimizer steps, before anything is saved."""
    after_step = Engine._after_step

    def dying(self: Engine, *arguments: Any) -> None:
        if self.counters.step == step:
            raise Killed
        after_step(self, *arguments)

    monkeypatch.setattr(Engine, "_after_step", dying)


def not_ended(run: Path) -> None:
    """Make the record of a run that has ended that of one which was killed right before its end."""
    facts = json.loads((run / "run.json").read_text())
    del facts["warnings"]
    (run / "run.json").write_text(json.dumps(facts))


def unbroken_and_resumed(
    run_tiny: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], step: int
) -> tuple[TrainResult, TrainResult]:
    """A run that nothing broke, and the same one killed after so many steps and resumed."""
    unbroken = run_tiny("unbroken", changes)
    with monkeypatch.context() as patch:
        die_after(patch, step)
        with pytest.raises(Killed):
            run_tiny("killed", changes)
    return unbroken, run_tiny("killed", resume=True)


def restored_after_nan(
    run: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    kept: type,
    remembered: Callable[[TrainState], torch.Tensor],
) -> list[torch.Tensor]:
    """What `remembered` gives of the state each time that an object of `kept` took over a saved tree, in a run whose
    weights, and what is remembered, turn into NaN before the fifth step."""
    load, step = kept.load_state_dict, Engine._step
    states: list[TrainState] = []
    restored: list[torch.Tensor] = []
    calls = iter(range(100))

    def loading(self: Any, tree: dict[str, Any]) -> None:
        load(self, tree)
        restored.append(remembered(states[-1]).clone())

    def failing(self: Engine, *arguments: Any) -> None:
        states.append(self.state)
        if next(calls) == 4:
            remembered(self.state).fill_(float("nan"))
            next(iter(self.state.model.parameters())).data.fill_(float("nan"))
        step(self, *arguments)

    monkeypatch.setattr(kept, "load_state_dict", loading)
    monkeypatch.setattr(Engine, "_step", failing)
    run()
    return restored
