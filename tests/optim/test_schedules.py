"""Schedules against formulas and against torch's own."""

from __future__ import annotations

import math

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
def test_steps_before_the_first_and_after_the_last_have_the_rates_of_the_ends(name: str) -> None:
    config = ScheduleConfig(name=name, warmup=0.2)  # type: ignore[arg-type]
    assert multiplier(config, -10, 100) == pytest.approx(multiplier(config, -1, 100))
    assert multiplier(config, 1000, 100) == pytest.approx(multiplier(config, 101, 100))


def test_constant_is_one_after_its_warm_up() -> None:
    assert rates(10, name="constant") == [1.0] * 10
    assert rates(10, name="constant", warmup=0.4, start=0.2)[:5] == pytest.approx([0.3, 0.5, 0.7, 0.9, 1.0])


def test_linear_falls_straight_to_its_end() -> None:
    assert rates(4, name="linear") == pytest.approx([0.875, 0.625, 0.375, 0.125])
    assert rates(4, name="linear", end=0.5) == pytest.approx([0.9375, 0.8125, 0.6875, 0.5625])


def test_cosine_is_torchs_annealing_read_at_the_middle_of_the_steps() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    expected = []
    for _ in range(20):
        optimizer.step()
        annealing.step()
        expected.append(optimizer.param_groups[0]["lr"])
    # torch's odd steps of 20 are the middles of our 10
    assert rates(10, name="cosine") == pytest.approx(expected[0::2], abs=1e-6)


def test_one_cycle_is_torchs_with_the_same_shape() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=1001, pct_start=0.3, div_factor=25.0, final_div_factor=1e4
    )
    expected = []
    for _ in range(1000):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step()
    found = rates(1000, name="one_cycle", warmup=0.3, start=1 / 25, end=1 / 25 / 1e4)
    assert found == pytest.approx(expected, abs=6e-3)


def test_step_multiplies_at_its_milestones() -> None:
    assert rates(8, name="step", milestones=(0.5, 0.75), gamma=0.1) == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] * 2)


def test_trapezoid_rises_stays_and_falls() -> None:
    found = rates(10, name="trapezoid", warmup=0.2, cooldown=0.4)
    assert found == pytest.approx([0.25, 0.75, 1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125])
    assert rates(4, name="trapezoid", warmup=0.0, cooldown=0.0) == [1.0] * 4


def test_a_single_step_learns_at_half_of_a_falling_schedule() -> None:
    assert rates(1, name="linear") == [0.5]
    assert rates(1, name="cosine") == pytest.approx([math.cos(math.pi / 4) ** 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cosin"}, r"schedule\.name.*got 'cosin'.*cosine"),
        ({"warmup": 1.0}, r"schedule\.warmup.*got 1\.0"),
        ({"cooldown": 1.5}, r"schedule\.cooldown.*got 1\.5"),
        ({"gamma": 0.0}, r"schedule\.gamma.*got 0\.0"),
        ({"milestones": (0.5, 1.5)}, r"schedule\.milestones.*got 1\.5"),
        ({"name": "trapezoid", "warmup": 0.5, "cooldown": 0.8}, r"overlap: got 0\.5 \+ 0\.8"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**options)  # type: ignore[arg-type]
