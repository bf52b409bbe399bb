"""Ending a run without warning, inside one process."""

from __future__ import annotations

from typing import Any

import pytest

from vivace.training.engine import Engine


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
