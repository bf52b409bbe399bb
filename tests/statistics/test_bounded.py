"""Bounds for scores in [0, 1]: they cover the true drop as often as they say, and as tightly as they can."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vivace.statistics.bounded import bernstein_bound, betting_bound, score_loss
from vivace.statistics.paired import loss_bound

Draw = Callable[[np.random.Generator, int], np.ndarray]
# differences of scores, and their true mean
DRAWS: dict[str, tuple[Draw, float]] = {
    "one in fifty loses a part": (
        lambda random, count: np.where(random.random(count) < 0.02, random.uniform(0.2, 0.6, count), 0.0),
        0.008,
    ),
    "a little, both ways": (lambda random, count: random.uniform(-0.1, 0.104, count), 0.002),
    "all of it, rarely": (lambda random, count: np.where(random.random(count) < 0.005, 1.0, 0.0), 0.005),
    "anything": (lambda random, count: random.uniform(-1, 1, count), 0.0),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("count", [40, 600])
def test_the_bound_is_above_the_true_mean_in_19_of_20_draws_or_more(name: str, count: int) -> None:
    draw, mean = DRAWS[name]
    random = np.random.default_rng(3)
    below = sum(betting_bound(draw(random, count)) < mean for _ in range(300))
    # 300 draws of 5 % are 15; 25 and more have a chance of 1 in 150
    assert below < 25


def test_a_bound_at_80_percent_is_wrong_more_often_than_at_95_and_not_too_often() -> None:
    draw, mean = DRAWS["anything"]
    random = np.random.default_rng(4)
    draws = [draw(random, 400) for _ in range(300)]
    wrong = [sum(betting_bound(values, confidence=level) < mean for values in draws) for level in (0.8, 0.95)]
    assert wrong[1] < wrong[0] <= 75


@pytest.mark.parametrize("name", DRAWS)
def test_betting_is_tighter_than_empirical_bernstein(name: str) -> None:
    values = DRAWS[name][0](np.random.default_rng(5), 1000)
    assert values.mean() < betting_bound(values) < bernstein_bound(values)


def test_without_any_difference_the_bound_is_near_the_one_for_zeros_and_ones() -> None:
    assert loss_bound(0, 0, 1000) < betting_bound(np.zeros(1000)) < 1.3 * loss_bound(0, 0, 1000)


def test_the_same_values_give_the_same_bound_whatever_was_drawn_before() -> None:
    values = DRAWS["anything"][0](np.random.default_rng(6), 50)
    np.random.random()
    assert betting_bound(values) == betting_bound(values.copy())


def test_a_loss_has_the_means_of_both_sides() -> None:
    loss = score_loss(np.array([1.0, 0.5, 0.75]), np.array([0.5, 0.5, 0.5]))
    assert (loss.before, loss.after, loss.drop, loss.num_samples) == (0.75, 0.5, 0.25, 3)
    assert loss.drop < loss.bound <= 1
    with pytest.raises(ValueError, match="the same samples"):
        score_loss(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        score_loss(np.zeros(3), np.array([0, np.nan, 1]))
    with pytest.raises(ValueError, match="at least one value"):
        betting_bound(np.zeros(0))
