"""Ending a run without warning, inside one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vivace.training.engine import Engine
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
