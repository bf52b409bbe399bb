"""Runs that are planned towards a target, on synthetic accuracies: a run of every length is known beforehand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vivace.optim.config import ScheduleConfig
from vivace.training.loop.aim import Aim, LargerNetwork
from vivace.training.loop.plan import Plan
from vivace.training.loop.state import Counters
from vivace.training.recipes.expected import (
    FEW,
    LARGE,
    MAX_LENGTH,
    MEDIUM,
    PHOTOS,
    SMALL,
    Network,
    cheapest,
    is_planned,
    logit,
    most_accurate,
    network_of,
    networks_for,
    seconds_for,
    top1_of,
    with_network,
)
from vivace.training.recipes.named import DataFacts, fast

NETWORKS = (SMALL, MEDIUM, LARGE, FEW, PHOTOS)
STEPS_PER_EPOCH = 45
FACTS = DataFacts(num_images=50_000, num_classes=10, channels=3, side=32)
LINEAR = ScheduleConfig(name="trapezoid", warmup=0.1, cooldown=0.9)


class Data:
    """Data whose logits are `shift` above the measured ones; a run on them is simulated step by step."""

    def __init__(
        self, network: Network, target: float, *, shift: float = 0.0, noise: float = 0.0, seed: int = 0
    ) -> None:
        self.network, self.target, self.shift, self.noise = network, target, shift, noise
        self.rng = np.random.default_rng(seed)
        networks = networks_for(network)
        self.plan = Plan(
            epochs=8,
            steps_per_epoch=STEPS_PER_EPOCH,
            schedule=LINEAR,
            target=target,
            aim=Aim(
                target=target,
                network=network,
                larger=networks[networks.index(network) + 1 :],
                full_steps=8 * STEPS_PER_EPOCH,
                num_val=5000,
                validation_steps=1.7,
            ),
        )
        self.counters = Counters()
        self.rates: list[float] = []
        self.messages: list[str] = []

    def run(self, *, until: int = 10**9) -> Counters:
        """The counters at the end of the plan, or at step `until`."""
        counters = self.counters
        while not self.plan.finished(counters) and counters.step < until:
            before = counters.progress
            self.rates.append(self.plan.rate(counters))
            counters.step += 1
            self.plan.advance(counters, 1.0)
            if self.plan.is_due(before, counters, STEPS_PER_EPOCH):
                self.validate()
        return counters

    def validate(self) -> None:
        counters = self.counters
        length = counters.step / counters.progress / (8 * STEPS_PER_EPOCH)
        value = self.network.logit(length) + self.shift - self.network.gap(counters.progress)[0]
        top1 = top1_of(value + self.noise * self.rng.standard_normal())
        counters.history.append({"step": counters.step, "progress": counters.progress, "val_top1": top1})
        if top1 >= self.target:
            counters.target_seconds = 1.0
        self.messages += filter(None, [self.plan.replan(counters)])

    @property
    def best_steps(self) -> float:
        """Steps of the shortest run that has the target at its end."""
        return self.network.length(logit(self.target) - self.shift) * 8 * STEPS_PER_EPOCH


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_expected_accuracies_grow_with_the_length_and_lengths_are_found_back(network: Network) -> None:
    lengths = np.geomspace(0.05, 8, 30)
    logits = [network.logit(length) for length in lengths]
    assert np.all(np.diff(logits) > 0)
    assert [network.length(value) for value in logits] == pytest.approx(lengths)
    gaps, spreads = zip(*(network.gap(progress) for progress in np.linspace(0.1, 1, 10)), strict=True)
    assert np.all(np.diff(gaps) <= 0)
    assert gaps[-1] == 0
    assert min(spreads) > 0
    for length, top1 in zip(network.lengths, network.top1, strict=True):
        assert top1_of(network.logit(length)) == pytest.approx(top1)


@pytest.mark.parametrize(
    ("target", "network"), [(0.6, SMALL), (0.66, SMALL), (0.8, MEDIUM), (0.85, MEDIUM), (0.89, LARGE), (0.99, LARGE)]
)
def test_the_network_is_the_cheapest_that_is_expected_to_reach_the_target(target: float, network: Network) -> None:
    choice = cheapest((SMALL, MEDIUM, LARGE), logit(target))
    assert choice.network is network
    assert choice.reaches == (target < 0.95)
    assert choice.length <= MAX_LENGTH
    # what `--within` has with that time
    recipe = fast(dataclasses.replace(FACTS, seconds=seconds_for(target, FACTS)))
    assert network_of(recipe) is network


@pytest.mark.parametrize("target", [0.6, 0.66, 0.75, 0.8, 0.85, 0.89])
def test_data_as_measured_take_no_more_than_the_best_run(target: float) -> None:
    network = cheapest((SMALL, MEDIUM, LARGE), logit(target)).network
    data = Data(network, target)
    assert data.run().target_seconds is not None
    assert data.counters.step <= 1.3 * data.best_steps + 5


@pytest.mark.parametrize("shift", [-0.4, -0.2, 0.2, 0.4])
@pytest.mark.parametrize(("network", "target"), [(MEDIUM, 0.8), (LARGE, 0.85), (PHOTOS, 0.8)])
def test_the_plan_follows_data_that_are_easier_or_harder(network: Network, target: float, shift: float) -> None:
    data = Data(network, target, shift=shift)
    data.run()
    assert data.counters.target_seconds is not None
    assert data.counters.step <= 1.5 * data.best_steps
    assert all(message.startswith(f"target {target}: ") for message in data.messages)


def test_noisy_validations_reach_the_target_in_most_runs_within_a_third_more_than_the_best() -> None:
    ratios = []
    for seed in range(40):
        data = Data(MEDIUM, 0.82, noise=0.05, seed=seed)
        assert data.run().target_seconds is not None
        ratios.append(data.counters.step / data.best_steps)
    assert np.median(ratios) < 1.3
    assert np.quantile(ratios, 0.9) < 1.6


def test_the_rate_is_that_of_a_run_of_the_planned_length() -> None:
    data = Data(PHOTOS, 0.8, shift=-0.3)
    data.run()
    assert data.rates[-1] < 0.15
    # put off at least once: the rate rises again
    after_warmup = data.rates[data.rates.index(max(data.rates)) :]
    assert np.any(np.diff(after_warmup) > 0)
    for row in data.counters.history:
        assert 0 < row["progress"] <= 1


def test_hopeless_data_are_given_up_for_a_larger_network_and_the_largest_ends_at_its_longest_plan() -> None:
    with pytest.raises(
        LargerNetwork, match=r"^target 0\.9: .* expected after .*: starting again with the large network$"
    ):
        Data(MEDIUM, 0.9, shift=-1.0).run()
    data = Data(LARGE, 0.99)
    assert data.run().target_seconds is None
    assert data.counters.step == MAX_LENGTH * 8 * STEPS_PER_EPOCH


def test_a_run_that_is_interrupted_anywhere_plans_the_same() -> None:
    whole = Data(MEDIUM, 0.8, shift=-0.2)
    whole.run()
    for step in (1, 30, 77):
        part = Data(MEDIUM, 0.8, shift=-0.2)
        first = part.run(until=step)
        resumed = Data(MEDIUM, 0.8, shift=-0.2)
        resumed.counters = Counters(**dataclasses.asdict(first))
        resumed.run()
        assert resumed.counters == whole.counters


def test_a_time_budget_ends_a_plan_that_is_longer() -> None:
    now = [0.0]
    for within, reaches in ((50.0, False), (10_000.0, True)):
        data = Data(MEDIUM, 0.85)
        data.plan.within_seconds, data.plan.clock, now[0] = within, lambda: now[0], 0.0
        counters = data.counters
        while not data.plan.finished(counters):
            before, now[0] = counters.progress, now[0] + 1
            counters.step += 1
            data.plan.advance(counters, 1.0)
            if data.plan.is_due(before, counters, STEPS_PER_EPOCH):
                data.validate()
        assert (counters.target_seconds is not None) == reaches
        assert now[0] <= min(within, 1.3 * data.best_steps)


def test_a_recipe_with_a_larger_network_keeps_what_was_set() -> None:
    before = fast(dataclasses.replace(FACTS, seconds=seconds_for(0.6, FACTS)))
    assert network_of(before) is SMALL
    kept = dataclasses.replace(before, seed=7, batch_size=123)
    after = with_network(kept, FACTS, LARGE)
    assert after == dataclasses.replace(fast(FACTS), seed=7, batch_size=123)
    assert with_network(before, FACTS, MEDIUM) == fast(dataclasses.replace(FACTS, seconds=seconds_for(0.8, FACTS)))


def test_only_fast_without_a_length_of_its_own_is_planned() -> None:
    assert is_planned("fast", {"optimizer.lr": 0.1})
    for name, changes in (
        ("accurate", {}),
        ("recipe.yaml", {}),
        (fast(FACTS), {}),
        ("fast", {"epochs": 3}),
        ("fast", {"schedule.name": "cosine"}),
    ):
        assert not is_planned(name, changes)


@pytest.mark.parametrize(
    ("network", "length", "wanted"),
    [
        # 1.6 and 4 of its 8 epochs, and a run that is too short for anything but the smallest
        (LARGE, 0.2, MEDIUM),
        (LARGE, 0.5, LARGE),
        (MEDIUM, 0.03, SMALL),
        (SMALL, 8.0, LARGE),
        # of these there is one
        (PHOTOS, 0.01, PHOTOS),
    ],
)
def test_the_most_accurate_network_for_a_time(network: Network, length: float, wanted: Network) -> None:
    found, its_length = most_accurate(network, length)
    assert found is wanted
    # the time is the same
    assert its_length * found.cost == pytest.approx(length * network.cost)
