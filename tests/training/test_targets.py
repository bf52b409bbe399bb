"""Runs with a target, end to end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from judging import judged_as

import vivace
from vivace.bundle import load_bundle
from vivace.config import override
from vivace.errors import CallbackError
from vivace.training import planned
from vivace.training import run as run_module
from vivace.training.execution import ExecutionConfig
from vivace.training.loop.aim import LargerNetwork
from vivace.training.loop.plan import Budget, Plan
from vivace.training.loop.session import Session
from vivace.training.planned import fitting_network
from vivace.training.recipes.expected import FEW, LARGE, MEDIUM, Choice, Network, network_of, seconds_for
from vivace.training.recipes.named import DataFacts, fast
from vivace.training.recipes.recipe import Recipe
from vivace.training.train import train

OPTIONS: dict[str, Any] = {"tune": False, "overrides": {"threads": 1, "precision": "fp32"}}


def test_digits_reach_their_target_in_a_fraction_of_the_recipe(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = train("digits", target=0.9, run=tmp_path / "run", **OPTIONS)
    assert result.target_reached
    assert result.val_top1 >= 0.9
    # 14 by default
    assert result.epochs < 5
    assert "target 0.9: " in capfd.readouterr().err
    assert json.loads((result.run / "run.json").read_text())["contract"]["planned"] is True


def test_an_interrupted_run_with_a_target_is_bitwise_the_unbroken_one(tmp_path: Path) -> None:
    class Failing(vivace.Callback):
        def on_step(self, step: vivace.StepInfo) -> None:
            if step.step == 12:
                raise ValueError("enough")

    whole = train("digits", target=0.985, run=tmp_path / "whole", quiet=True, **OPTIONS)
    with pytest.raises(CallbackError):
        train("digits", target=0.985, run=tmp_path / "broken", quiet=True, callbacks=[Failing()], **OPTIONS)
    resumed = train("digits", resume=True, run=tmp_path / "broken", quiet=True, tune=False)
    assert resumed.epochs == whole.epochs
    first, second = ((result.bundle / "model.safetensors").read_bytes() for result in (whole, resumed))
    assert first == second


def test_a_run_goes_on_to_a_higher_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values: Iterator[float] = iter([0.5, 0.8, 0.81, 0.82, *[0.9] * 50])
    monkeypatch.setattr(Session, "_validate", lambda *_: judged_as(next(values)))
    first = train("digits", target=0.8, run=tmp_path / "run", quiet=True, **OPTIONS)
    second = train("digits", resume=True, target=0.9, run=tmp_path / "run", quiet=True, tune=False)
    assert first.target_reached
    assert second.target_reached
    assert second.epochs > first.epochs


def test_epochs_with_a_target_keep_their_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values: Iterator[float] = iter([0.1, 0.95])
    monkeypatch.setattr(Session, "_validate", lambda *_: judged_as(next(values)))
    result = train("digits", target=0.9, epochs=4, run=tmp_path / "run", quiet=True, **OPTIONS)
    assert (result.epochs, result.target_reached) == (2, True)


def test_a_run_starts_again_with_a_larger_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, asked = Plan.replan, []

    def replan(self: Plan, counters: Any) -> str | None:
        if not asked:
            asked.append(counters.step)
            raise LargerNetwork(Choice(network=FEW, length=1.0, reaches=True), "starting again with a wider one")
        return plain(self, counters)

    def wider(recipe: Recipe, *_: object) -> Recipe:
        model = dataclasses.replace(recipe.model, arguments={**recipe.model.arguments, "widths": [32, 64, 96]})
        return dataclasses.replace(recipe, model=model)

    monkeypatch.setattr(Plan, "replan", replan)
    monkeypatch.setattr(run_module, "with_network", wider)
    result = train("digits", target=0.9, run=tmp_path / "run", **OPTIONS)
    assert "starting again with a wider one" in capfd.readouterr().err
    assert result.target_reached
    assert load_bundle(result.bundle).info.architecture.arguments["widths"] == [32, 64, 96]
    # what was saved fits the recipe: the run can be continued
    assert train("digits", resume=True, target=0.95, run=tmp_path / "run", quiet=True, tune=False).val_top1 >= 0.9


def test_a_run_within_a_time_takes_the_network_that_fits_and_keeps_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trials: list[Recipe] = []
    plain = run_module.run_trial

    def trial(recipe: Recipe, *args: Any, **kwargs: Any) -> Any:
        trials.append(recipe)
        return plain(recipe, *args, **kwargs)

    def narrower(session: Session, recipe: Recipe, *_: object, **__: object) -> tuple[Recipe, str]:
        model = dataclasses.replace(recipe.model, arguments={**recipe.model.arguments, "widths": [8, 16, 24]})
        return dataclasses.replace(recipe, model=model), "network: a narrower one"

    monkeypatch.setattr(run_module, "run_trial", trial)
    monkeypatch.setattr(run_module, "fitting_network", narrower)
    result = train("digits", within=4, run=tmp_path / "run", cache_dir=tmp_path, overrides={"threads": 1})
    assert capfd.readouterr().err.count("network: a narrower one") == 1
    assert load_bundle(result.bundle).info.architecture.arguments["widths"] == [8, 16, 24]
    assert len(trials) == 1
    assert trials[0].model.arguments.get("widths") != [8, 16, 24]


@pytest.mark.parametrize(
    ("step_ms", "changes", "wanted"),
    [
        # 45 steps of 1,000 images an epoch: 2.2 and 9 epochs in 120 s
        (450.0, {}, MEDIUM),
        (80.0, {}, None),
        # a network that was asked for stays
        (450.0, {"model.arguments": {"widths": [32, 32, 32]}}, None),
    ],
)
def test_the_network_follows_the_speed_that_was_measured(
    step_ms: float, changes: dict[str, Any], wanted: Network | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = DataFacts(num_images=50_000, num_classes=10, channels=3, side=32, seconds=120.0)
    recipe = override(fast(facts), changes)
    assert bool(changes) != (network_of(recipe) is LARGE)
    session: Any = SimpleNamespace(
        device=torch.device("cpu"),
        network=None,
        trial_step=lambda *_: None,
        seen=SimpleNamespace(size=32),
        augment=SimpleNamespace(size_at=lambda progress: 20 if progress < 0.5 else 32),
        data=SimpleNamespace(train_indices=range(45_000)),
    )
    monkeypatch.setattr(planned, "time_call", lambda *_: step_ms)
    found = fitting_network(session, recipe, ExecutionConfig(), Budget(within_seconds=120.0), facts, used=4.0)
    if wanted is None:
        assert found is None
        return
    assert found is not None
    assert network_of(found[0]) is wanted
    assert found[0] == fast(dataclasses.replace(facts, seconds=seconds_for(0.8, facts)))
    assert wanted.name in found[1]
    assert fitting_network(session, recipe, ExecutionConfig(), Budget(), facts, used=4.0) is None
