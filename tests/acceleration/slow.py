"""Work that takes as long as it is told, for tests of what is left out: by a clock of their own, or in a process."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import waits_with_a_child

from vivace.acceleration import budget as budget_module
from vivace.acceleration import worker as worker_module
from vivace.acceleration.candidates import Builder, Candidate
from vivace.acceleration.networks import Network, open_network
from vivace.bundle import Bundle
from vivace.errors import OutOfTime

__all__ = ["Clock", "SlowBuilder", "fake_clock", "open_with_slow_builder"]


class Clock:
    """Seconds that pass only when something is run, as `costs` tells: by a part of what is run, its seconds."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.now = 1000.0
        self.ran: list[str] = []
        self.abandoned: list[str] = []
        self._costs = costs

    def run(self, until: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of a worker's: what would end too late is abandoned when its time is up."""
        what = " ".join([function.__name__, *(arg.name for arg in args if hasattr(arg, "name"))]).strip()
        seconds = next((cost for part, cost in self._costs.items() if part in what), 0.1)
        if self.now + seconds > until:
            self.now = max(self.now, until)
            self.abandoned.append(what)
            raise OutOfTime("out of time")
        self.now += seconds
        self.ran.append(what)
        return function(*args, **kwargs)


def fake_clock(monkeypatch: pytest.MonkeyPatch, costs: dict[str, float]) -> Clock:
    """A search's time is told, too."""
    clock = Clock(costs)
    monkeypatch.setattr(budget_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(worker_module.Worker, "run", lambda self, *args, **kwargs: clock.run(*args, **kwargs))
    return clock


def open_with_slow_builder(*args: Any, **kwargs: Any) -> Network:
    """As `open_network`, in whatever process, and nothing can be exported of it in time."""
    network = open_network(*args, **kwargs)
    images = network.splits.calibrate
    return dataclasses.replace(network, builder=SlowBuilder(network.bundle, args[3], images.pixels))


class SlowBuilder(Builder):
    """One that never ends, and has a process of its own: both are named in the file VIVACE_TEST_PIDS."""

    def build(self, candidate: Candidate) -> Bundle:
        if candidate.is_exported:
            waits_with_a_child(Path(os.environ["VIVACE_TEST_PIDS"]))
        return super().build(candidate)
