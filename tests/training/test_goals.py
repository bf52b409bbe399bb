"""A run that goes on under another budget, and a trial in a timed run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from judging import judged_as

from vivace.training.loop.session import Session
from vivace.training.result import TrainResult
from vivace.training.tuning import tune as tune_module

RunTiny = Callable[..., TrainResult]


def test_a_timed_run_that_is_over_goes_on_in_a_longer_time(run_tiny: RunTiny) -> None:
    first = run_tiny("run", within=1.5)
    second = run_tiny("run", resume=True, within=2.5 * max(1.5, first.total_seconds))
    # more work in more time, however fast the machine
    assert second.epochs > first.epochs
    assert second.total_seconds > 1.5 * first.total_seconds


def test_a_run_that_reached_its_target_goes_on_to_a_higher_one(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: Iterator[float] = iter([0.5, 0.8, 0.9, 0.95, 0.97])
    monkeypatch.setattr(Session, "_validate", lambda *_: judged_as(next(values)))
    first = run_tiny("run", {"epochs": 10}, target=0.8)
    second = run_tiny("run", resume=True, target=0.95)
    assert (first.epochs, second.epochs, second.target_reached) == (2, 4, True)


def test_a_trial_in_a_timed_run_takes_its_share_of_that_time(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_module, "MAX_SHARE", 0.01)
    # a step that is too long for a fiftieth of 1.5 s, however fast the machine
    monkeypatch.setattr(tune_module, "time_call", lambda *_: 50.0)
    changes = {"precision": "auto", "channels_last": "auto", "epochs": 20_000}
    result = run_tiny("run", changes, tune=True, within=1.5)
    assert json.loads((result.run / "tune.json").read_text())["source"] == "skipped"
