"""Schedules against formulas and against torch's own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from vivace.errors import ConfigError
from vivace.optim.config import SCHEDULES as NAMES
from vivace.optim.config import ScheduleConfig
from vivace.optim.schedules import SCHEDULES, multiplier


def rates(total: int, **options: object) -> list[float]:
    config = ScheduleConfig(**options)  # type: ignore[arg-type]
    return [multiplier(config, step, total) for step in range(total)]


def test_the_table_has_every_name_of_the_config() -> None:
    assert set(SCHEDULES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_a_multiplier_lies_between_zero_and_one_and_no_step_is_wasted(name: str, total: int, warmup: float) -> None:
    found = rates(total, name=name, warmup=warmup)
    assert all(0.0 < rate <= 1.0 for rate in found)


@pytest.mark.parametrize("name", NAMES)
def test_steps_outside_of_the_run_have_the_rates_of_its_ends(name: str) -> None:
    config = ScheduleConfig(name=name, warmup=0.2, start=0.125, end=0.25)  # type: ignore[arg-type]
    last = {"constant": 1.0, "step": 0.01}.get(name, 0.25)
    for before, after in ((-1, 100), (-10, 1000)):
        assert multiplier(config, before, 100) == pytest.approx(0.125)
        assert multiplier(config, after, 100) == pytest.approx(last)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.0), (0.5, 0.2)])
def test_rates_rise_to_one_during_the_warm_up_and_never_after_it(name: str, start: float, end: float) -> None:
    found = rates(1000, name=name, warmup=0.2, start=start, end=end)
    rise, rest = found[:200], found[200:]
    assert all(a < b for a, b in itertools.pairwise(rise))
    assert start < rise[0] < start + 0.01
    assert rise[-1] == pytest.approx(1.0, abs=0.01)
    assert rest[0] == pytest.approx(1.0, abs=0.01)
    assert all(a >= b for a, b in itertools.pairwise(rest))


def test_a_run_of_no_steps_has_a_rate_all_the_same() -> None:
    assert multiplier(ScheduleConfig(name="linear"), 0, 0) == 0.5


def test_constant_is_one_after_its_warm_up() -> None:
    assert rates(10, name="constant") == [1.0] * 10
    assert rates(10, name="constant", warmup=0.4, start=0.2)[:5] == pytest.approx([0.3, 0.5, 0.7, 0.9, 1.0])


def test_linear_falls_straight_to_its_end() -> None:
    assert rates(4, name="linear") == pytest.approx([0.875, 0.625, 0.375, 0.125])
    assert rates(4, name="linear", end=0.5) == pytest.approx([0.9375, 0.8125, 0.6875, 0.5625])
    # the fall takes what the warm-up leaves
    assert rates(6, name="linear", warmup=1 / 3) == pytest.approx([0.25, 0.75, 0.875, 0.625, 0.375, 0.125])


def torchs(make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], count: int) -> list[float]:
    """The rates that a schedule of torch gives to the first `count` steps; the peak is 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_cosine_is_torchs_annealing_read_at_the_middle_of_the_steps(end: float) -> None:
    # the middles of 10 steps are every other end of 20
    expected = torchs(lambda sgd: torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=20, eta_min=end), 20)[1::2]
    assert rates(10, name="cosine", end=end) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("warmup", "top"), [(0.25, 0.25), (0.0, 0.3)])
def test_one_cycle_is_torchs_read_at_the_middle_of_the_steps(warmup: float, top: float) -> None:
    num_halves = 80
    # torch ends the rise at step pct_start × total_steps - 1
    share = (top * num_halves + 1) / (num_halves + 1)
    expected = torchs(
        lambda sgd: torch.optim.lr_scheduler.OneCycleLR(
            sgd, max_lr=1.0, total_steps=num_halves + 1, pct_start=share, div_factor=25.0, final_div_factor=4.0
        ),
        num_halves,
    )[1::2]
    assert rates(40, name="one_cycle", warmup=warmup, start=0.04, end=0.01) == pytest.approx(expected, abs=1e-6)


def test_step_multiplies_at_its_milestones() -> None:
    assert rates(8, name="step", milestones=(0.5, 0.75), gamma=0.1) == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] * 2)
    # shares count from the end of the warm-up, and a milestone at the middle of a step holds for it
    found = rates(10, name="step", warmup=0.2, milestones=(0.5625,), gamma=0.5)
    assert found == pytest.approx([0.25, 0.75, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5])
    assert rates(3, name="step", milestones=()) == [1.0] * 3


def test_trapezoid_rises_stays_and_falls() -> None:
    found = rates(10, name="trapezoid", warmup=0.2, cooldown=0.4)
    assert found == pytest.approx([0.25, 0.75, 1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125])
    assert rates(4, name="trapezoid", warmup=0.0, cooldown=0.0) == [1.0] * 4
    found = rates(4, name="trapezoid", warmup=0.5, cooldown=0.5, start=0.2, end=0.6)
    assert found == pytest.approx([0.4, 0.8, 0.9, 0.7])
    assert multiplier(ScheduleConfig(name="trapezoid", cooldown=0.0), 4, 4) == 1.0
    assert rates(2, name="trapezoid", warmup=0.0, cooldown=1.0) == pytest.approx([0.75, 0.25])


def test_a_single_step_learns_at_half_of_a_falling_schedule() -> None:
    assert rates(1, name="linear") == [0.5]
    assert rates(1, name="cosine") == pytest.approx([math.cos(math.pi / 4) ** 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "cosin"},
            r"schedule\.name is unknown: got 'cosin'\. Did you mean 'cosine'\? Known: constant, cosine, .*",
        ),
        ({"warmup": 1.0}, r"schedule\.warmup is out of range: got 1\.0\. Give a value in \[0, 1\)\."),
        ({"warmup": -0.1}, r"schedule\.warmup is out of range: got -0\.1\. .*"),
        ({"cooldown": 1.5}, r"schedule\.cooldown is out of range: got 1\.5\. Give a value in \[0, 1\]\."),
        ({"cooldown": -0.5}, r"schedule\.cooldown is out of range: got -0\.5\. .*"),
        ({"start": 1.1}, r"schedule\.start is out of range: got 1\.1\. .*"),
        ({"start": -0.1}, r"schedule\.start is out of range: got -0\.1\. .*"),
        ({"end": 1.1}, r"schedule\.end is out of range: got 1\.1\. .*"),
        ({"end": math.nan}, r"schedule\.end is out of range: got nan\. .*"),
        ({"gamma": 0.0}, r"schedule\.gamma is out of range: got 0\.0\. Give a value in \(0, 1\]\."),
        ({"gamma": 1.5}, r"schedule\.gamma is out of range: got 1\.5\. .*"),
        ({"milestones": (0.5, 1.5)}, r"schedule\.milestones is out of range: got 1\.5\. Give a value in \[0, 1\]\."),
        (
            {"name": "trapezoid", "warmup": 0.5, "cooldown": 0.8},
            r"schedule\.warmup and schedule\.cooldown overlap: got 0\.5 \+ 0\.8\. "
            r"Give fractions whose sum is at most 1\.",
        ),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        ScheduleConfig(**options)  # type: ignore[arg-type]


def test_shares_that_fill_the_run_are_no_overlap() -> None:
    # 0.7 + 0.1 + 0.2 is a little more than 1 in floating point
    ScheduleConfig(name="trapezoid", warmup=0.7 + 0.1, cooldown=0.2 + 1e-12)
    ScheduleConfig(name="cosine", warmup=0.9, cooldown=0.3)
