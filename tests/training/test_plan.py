"""Contracts: epochs, a time, a target; and the forecast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vivace.errors import ConfigError
from vivace.optim.config import ScheduleConfig
from vivace.training.build import Session
from vivace.training.engine import Validation
from vivace.training.plan import Plan, forecast_top1
from vivace.training.result import TrainResult
from vivace.training.run import parse_duration, train
from vivace.training.state import Counters

RunTiny = Callable[..., TrainResult]
LINEAR = ScheduleConfig(name="linear")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2min", 120), ("45", 45), (30, 30), (0.5, 0.5)]
)
def test_durations_are_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "ten minutes", "10 days", "-5m", "0s", "1h30m", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--within is no duration: got .*Write 90s, 10m or 1\.5h\."):
        parse_duration(text)


def test_two_contracts_of_length_and_a_target_out_of_range_are_refused(make_folder: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"^two contracts: got epochs 3 and within '5m'"):
        train(make_folder(), epochs=3, within="5m")
    for target in (0.0, 1.2, -1.0, 90.0):
        with pytest.raises(ConfigError, match=r"^--target is out of range: got .*Give an accuracy in \(0, 1\]"):
            train(make_folder(f"t{target}"), target=target)


def test_a_plan_in_epochs_follows_its_schedule_and_ends() -> None:
    plan = Plan(epochs=2, steps_per_epoch=5, schedule=LINEAR)
    counters = Counters()
    rates = []
    while not plan.finished(counters):
        rates.append(plan.rate(counters))
        counters.step += 1
        plan.advance(counters, 1.0)
    assert rates == pytest.approx([1 - (step + 0.5) / 10 for step in range(10)])
    assert counters.progress == 1.0


class Machine:
    """A simulated clock, and steps that take what a function of the time says."""

    def __init__(self, step_seconds: Callable[[float, int], float], *, started: float = 4.0) -> None:
        self.now, self.step_seconds = started, step_seconds
        self.rates: list[float] = []

    def run(self, within: float, *, validation_every: int = 20, validation: float = 0.0, reserve: float = 1.0) -> float:
        plan = Plan(
            epochs=1,
            steps_per_epoch=1,
            schedule=LINEAR,
            within_seconds=within,
            reserve_seconds=reserve,
            clock=lambda: self.now,
        )
        counters = Counters()
        while not plan.finished(counters):
            self.rates.append(plan.rate(counters))
            took = self.step_seconds(self.now, counters.step)
            self.now += took
            counters.step += 1
            plan.advance(counters, took)
            if counters.step % validation_every == 0:
                self.now += validation
                plan.overhead_seconds = validation / validation_every
        return self.now + reserve


RNG = np.random.default_rng(0)
STEPS: dict[str, Callable[[float, int], float]] = {
    "steady": lambda now, step: 0.1,
    "slow first steps": lambda now, step: 2.0 if step < 3 else 0.1,
    "noisy": lambda now, step: float(RNG.lognormal(np.log(0.1), 0.5)),
    "another job comes": lambda now, step: 0.1 if now < 30 else 0.3,
    "another job goes": lambda now, step: 0.3 if now < 30 else 0.1,
    "stalls": lambda now, step: 1.5 if step % 100 == 50 else 0.1,
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("validation", [0.0, 0.8])
def test_a_time_is_kept_within_five_percent_and_the_rate_comes_down_in_time(name: str, validation: float) -> None:
    machine = Machine(STEPS[name])
    ended = machine.run(60.0, validation=validation)
    assert 0.95 * 60 <= ended <= 1.05 * 60
    # the schedule is walked through to its end, whatever the steps took
    assert machine.rates[0] > 0.98
    assert machine.rates[-1] < 0.05
    assert all(first >= second - 1e-9 for first, second in zip(machine.rates, machine.rates[1:], strict=False))


def test_a_time_that_is_over_before_it_began_still_trains_one_step() -> None:
    machine = Machine(lambda now, step: 0.5, started=100.0)
    machine.run(60.0)
    assert len(machine.rates) == 1


def test_a_real_run_keeps_its_time(run_tiny: RunTiny) -> None:
    result = run_tiny(within="6s")
    assert result.within_seconds == 6
    assert result.epochs > 3
    assert 5.0 < result.total_seconds < 6.6


def fake_validation(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    remaining = iter(values)

    def validate(self: Any, setup: Any, model: Any) -> Validation:
        return Validation(loss=1.0, top1=next(remaining))

    monkeypatch.setattr(Session, "_validate", validate)


def test_a_target_stops_the_run_when_it_is_reached_and_says_when(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_validation(monkeypatch, [0.5, 0.8, 0.9, 0.95])
    result = run_tiny(target=0.8, changes={"epochs": 10})
    assert result.target_reached is True
    assert result.epochs == 2
    assert result.target_seconds is not None
    assert 0 < result.target_seconds <= result.total_seconds


def test_a_target_that_is_not_reached_is_told(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_validation(monkeypatch, [0.5, 0.6, 0.7])
    result = run_tiny(target=0.8)
    assert result.target_reached is False
    assert result.target_seconds is None
    assert result.epochs == 3


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_forecast_finds_the_end_of_a_power_law(power: float) -> None:
    def top1(share: float) -> float:
        return 0.9 - 0.05 * share**-power

    history = [{"progress": share, "val_top1": top1(share)} for share in (0.1, 0.2, 0.3, 0.4)]
    assert forecast_top1(history, 0.4) == pytest.approx(top1(1.0), abs=1e-6)


def test_there_is_no_forecast_from_two_points_and_never_an_impossible_one() -> None:
    rising = [{"progress": share, "val_top1": share * 4} for share in (0.1, 0.15, 0.2)]
    assert forecast_top1(rising[:2], 0.15) is None
    forecast = forecast_top1(rising, 0.2)
    assert forecast is not None
    assert 0.0 <= forecast <= 1.0
