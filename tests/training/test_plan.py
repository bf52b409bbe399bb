"""Contracts: epochs, a time, a target; and the forecast."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging import judged_as

from vivace.config import parse_duration
from vivace.errors import ConfigError
from vivace.optim.config import ScheduleConfig
from vivace.training.loop.plan import Plan, forecast_top1
from vivace.training.loop.session import Session
from vivace.training.loop.state import Counters
from vivace.training.loop.validation import Validation
from vivace.training.result import TrainResult
from vivace.training.train import train

RunTiny = Callable[..., TrainResult]
LINEAR = ScheduleConfig(name="linear")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2min", 120), ("45", 45), (30, 30), (0.5, 0.5)]
)
def test_durations_are_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "ten minutes", "10 days", "-5m", "0s", "1h30m", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    message = r"^`within` is no duration: got .*Write 90s, 10m, 1\.5h, or a number of seconds: 90\.$"
    with pytest.raises(ConfigError, match=message):
        parse_duration(text)


def test_two_budgets_of_length_and_a_target_out_of_range_are_refused(make_folder: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"^two budgets: got epochs 3 and within '5m'"):
        train(make_folder(), epochs=3, within="5m")
    for target in (0.0, 1.2, -1.0, 90.0):
        with pytest.raises(ConfigError, match=r"^`target` is out of range: got .*Give an accuracy in \(0, 1\]"):
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
    """A simulated clock, and steps that take what a function of the time says.

    Every 20 steps come a validation, of which the plan is told, and a checkpoint, of which it is not. tick: what the
    clock that the plan reads is rounded down to, as that of a process is.
    """

    def __init__(
        self,
        step_seconds: Callable[[float, int], float],
        *,
        started: float = 4.0,
        validation: float = 0.0,
        checkpoint: float = 0.0,
        tick: float = 0.0,
    ) -> None:
        self.now, self.step_seconds, self.tick = started, step_seconds, tick
        self.validation, self.checkpoint = validation, checkpoint
        self.counters = Counters()
        self.rates: list[float] = []

    def clock(self) -> float:
        return self.now // self.tick * self.tick if self.tick else self.now

    def run(self, within: float, *, reserve: float = 1.0, killed_at: float = float("inf")) -> float:
        """When the bundle is saved; called again after a kill it goes on with a new plan, as a resumed run does."""
        plan = Plan(
            epochs=1,
            steps_per_epoch=1,
            schedule=LINEAR,
            within_seconds=within,
            reserve_seconds=reserve,
            clock=self.clock,
        )
        counters = self.counters
        while not plan.finished(counters) and self.now < killed_at:
            self.rates.append(plan.rate(counters))
            took = self.step_seconds(self.now, counters.step)
            self.now += took
            counters.step += 1
            plan.advance(counters, took)
            if counters.step % 20 == 0:
                self.now += self.validation + self.checkpoint
                plan.overhead_seconds = self.validation / 20
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


def check_walked_through(machine: Machine) -> None:
    """The schedule goes from its start to its end and never back, whatever the steps took."""
    assert machine.rates[0] > 0.98
    assert machine.rates[-1] < 0.05
    assert all(first >= second - 1e-9 for first, second in zip(machine.rates, machine.rates[1:], strict=False))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("validation", [0.0, 0.8])
@pytest.mark.parametrize("checkpoint", [0.0, 0.8])
def test_a_time_is_kept_within_five_percent_and_the_rate_comes_down_in_time(
    name: str, validation: float, checkpoint: float
) -> None:
    machine = Machine(STEPS[name], validation=validation, checkpoint=checkpoint)
    assert 0.95 * 60 <= machine.run(60.0) <= 1.05 * 60
    check_walked_through(machine)


@pytest.mark.parametrize("step", [13.0, 17.0, 23.0, 41.0])
def test_no_step_is_begun_that_is_a_large_part_of_the_time_and_does_not_fit(step: float) -> None:
    machine = Machine(lambda now, number: step, started=10.0)
    assert machine.run(120.0, reserve=20.0) <= 1.02 * 120
    # and none is left out that does
    assert machine.now + step > 100.0


def test_half_of_the_time_is_half_of_the_schedule() -> None:
    machine = Machine(lambda now, step: 0.05, started=0.0, validation=0.3, checkpoint=0.5)
    machine.run(101.0, killed_at=50.0)
    assert machine.counters.progress == pytest.approx(0.5, abs=0.03)


def test_steps_shorter_than_a_tick_of_the_clock_are_planned_as_well() -> None:
    machine = Machine(lambda now, step: 0.002, started=0.0, checkpoint=0.02, tick=0.01)
    machine.run(21.0, killed_at=10.0)
    assert machine.counters.progress == pytest.approx(0.5, abs=0.05)
    assert 0.95 * 21 <= machine.run(21.0) <= 1.05 * 21
    check_walked_through(machine)


def test_a_resumed_run_keeps_its_time_from_first_start_to_end() -> None:
    machine = Machine(lambda now, step: 1.0 if step in (0, 1, 2) else 0.1)
    machine.run(60.0, killed_at=30.0)
    before = machine.counters.progress
    # importing and reading the checkpoint, and first steps that are slow again
    machine.now += 5.0
    restarted = machine.now
    machine.step_seconds = lambda now, step: 1.0 if now < restarted + 3 else 0.1
    assert 0.95 * 60 <= machine.run(60.0) <= 1.05 * 60
    assert 0.4 < before < 0.6
    check_walked_through(machine)


def test_slow_first_steps_after_a_resume_do_not_linger_in_the_estimate() -> None:
    plan = Plan(epochs=1, steps_per_epoch=1, schedule=LINEAR, within_seconds=100.0, clock=lambda: 0.0)
    counters = Counters(step=500, progress=0.5)
    for seconds in (9.0, 0.1, 0.1):
        before = counters.progress
        counters.step += 1
        plan.advance(counters, seconds)
    # 1,000 steps of 0.1 s are left for what is left
    assert counters.progress - before == pytest.approx((1 - before) / 1000, rel=0.01)


def test_a_time_that_is_over_before_it_began_still_trains_one_step() -> None:
    machine = Machine(lambda now, step: 0.5, started=100.0)
    machine.run(60.0)
    assert len(machine.rates) == 1


@pytest.mark.alone
@pytest.mark.parametrize("settled", [True, False])
def test_time_is_kept_for_all_that_follows_the_last_step(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    from vivace.training.loop.engine import Engine
    from vivace.training.loop.session import Session

    plans = []
    run = Engine.run
    monkeypatch.setattr(Session, "pass_seconds", lambda *arguments: 0.06)
    monkeypatch.setattr(Engine, "run", lambda engine: (plans.append(engine.plan), run(engine))[1])
    if not settled:
        monkeypatch.setattr(Session, "settler", lambda *arguments: None)
    run_tiny(within="5s")
    # 6 images for validation take 0.06 s: two passes over them, and one over the 18 trained on for their statistics
    assert plans[0].reserve_seconds == pytest.approx(0.12 + (0.18 if settled else 0.0) + 0.7)


def test_a_real_run_keeps_its_time_and_comes_to_the_end_of_its_schedule(run_tiny: RunTiny) -> None:
    result = run_tiny(within="6s")
    assert result.within_seconds == 6
    assert result.epochs > 3
    # a reserve that turned out not to be needed may be left over; nothing may be overdrawn but, on a machine that does
    # something else, by the time of some of the run's own epochs
    spare = 5 * result.total_seconds / result.epochs
    assert 0.75 * 6 < result.total_seconds < 1.05 * 6 + spare
    with (result.run / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    # the rate of 0.05 has been as high as that and has come down
    assert max(rates) > 0.04
    assert rates[-1] < 0.005


def test_one_stalled_step_does_not_jerk_the_schedule() -> None:
    plan = Plan(epochs=1, steps_per_epoch=1, schedule=LINEAR, within_seconds=100.0, clock=lambda: 0.0)
    counters, moves = Counters(), []
    for seconds in (0.1, 0.1, 0.1, 0.1, 2.0, 0.1):
        before = counters.progress
        counters.step += 1
        plan.advance(counters, seconds)
        moves.append(counters.progress - before)
    assert max(moves) < 4 * min(moves)


def test_the_time_left_is_told() -> None:
    timed = Plan(epochs=1, steps_per_epoch=1, schedule=LINEAR, within_seconds=60, reserve_seconds=2, clock=lambda: 50.0)
    assert timed.seconds_left(Counters()) == 8.0
    late = Plan(epochs=1, steps_per_epoch=1, schedule=LINEAR, within_seconds=60, clock=lambda: 99.0)
    assert late.seconds_left(Counters()) == 0.0
    counted = Plan(epochs=2, steps_per_epoch=10, schedule=LINEAR)
    assert counted.seconds_left(Counters()) is None
    assert counted.seconds_left(Counters(step=5, seconds=10.0)) == 30.0
    # stopped early
    counted.epochs = 0
    assert counted.seconds_left(Counters(step=5, seconds=10.0)) == 0.0


def fake_validation(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    remaining = iter(values)

    def validate(self: Any, execution: Any, model: Any) -> Validation:
        return judged_as(next(remaining))

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

    history = [{"step": round(1000 * share), "val_top1": top1(share)} for share in (0.1, 0.2, 0.3, 0.4)]
    assert forecast_top1(history, 0.4) == pytest.approx(top1(1.0), abs=1e-6)
    # where the run is extended to twice as many steps, the same curve goes on
    assert forecast_top1(history, 0.2) == pytest.approx(top1(2.0), abs=1e-6)


def test_the_forecast_of_a_noisy_curve_is_near() -> None:
    rng = np.random.default_rng(0)
    history = [
        {"step": step, "val_top1": 0.9 - 0.1 * (step / 20) ** -0.5 + float(rng.normal(0, 0.003))}
        for step in range(1, 11)
    ]
    assert forecast_top1(history, 0.5) == pytest.approx(0.8, abs=0.02)


def test_there_is_no_forecast_from_two_points_and_never_an_impossible_one() -> None:
    rising = [{"step": round(100 * share), "val_top1": share * 4} for share in (0.1, 0.15, 0.2)]
    assert forecast_top1(rising[:2], 0.15) is None
    forecast = forecast_top1(rising, 0.2)
    assert forecast == 1.0
    falling = [{"step": step, "val_top1": 0.5 - 0.2 * step} for step in (0.5, 1, 2)]
    assert forecast_top1(falling, 0.05) == 0.0
