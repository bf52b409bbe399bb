"""The measured trial: only what pays is switched on, and the receipt says so."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vivace.training import tune as tune_module
from vivace.training.recipe import Recipe
from vivace.training.result import TrainResult
from vivace.training.step import Setup
from vivace.training.tune import Receipt, plain_setup, receipt_path, stored_receipt, tune

RunTiny = Callable[..., TrainResult]
CPU = torch.device("cpu")
RECIPE = Recipe(batch_size=64, threads=1)


def sleeper(milliseconds: Callable[[Setup], float]) -> Callable[[Setup], Callable[[], object]]:
    """make_step for steps that take so long for a setup."""
    return lambda setup: lambda: time.sleep(milliseconds(setup) / 1e3)


@pytest.fixture(autouse=True)
def bf16_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine of the tests computes in bf16."""
    monkeypatch.setattr(tune_module, "supported_precisions", lambda device: ("fp32", "bf16"))


def names_kept(receipt: Receipt) -> dict[str, bool]:
    return {trial.name: trial.kept for trial in receipt.trials}


def test_what_is_faster_is_kept_and_measured_against_the_best_so_far() -> None:
    def cost(setup: Setup) -> float:
        return 30.0 / (2 if setup.precision == "bf16" else 1) / (1.5 if setup.channels_last else 1)

    receipt = tune(RECIPE, sleeper(cost), device=CPU, expected_steps=10_000)
    assert receipt.source == "measured"
    assert (receipt.setup.precision, receipt.setup.channels_last) == ("bf16", True)
    ratios = {trial.name: trial.ratio for trial in receipt.trials}
    assert ratios["bf16"] == pytest.approx(2.0, rel=0.2)
    assert ratios["channels_last"] == pytest.approx(1.5, rel=0.2)
    assert all(trial.ratio_low <= trial.ratio <= trial.ratio_high for trial in receipt.trials)


def test_what_is_slower_is_left_off() -> None:
    def cost(setup: Setup) -> float:
        return 6.0 * (1.5 if setup.precision == "bf16" else 1) * (1.3 if setup.channels_last else 1)

    receipt = tune(RECIPE, sleeper(cost), device=CPU, expected_steps=10_000)
    assert receipt.setup == plain_setup(RECIPE)
    assert names_kept(receipt) == {"bf16": False, "channels_last": False}


def test_a_gain_that_noise_could_explain_is_left_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from vivace.measure import Comparison

    noisy = Comparison((5.0, 7.0), (4.9, 6.8), ratio=1.03, ratio_low=0.9, ratio_high=1.2)
    monkeypatch.setattr(tune_module, "compare", lambda *args, **options: noisy)
    receipt = tune(RECIPE, sleeper(lambda setup: 1.0), device=CPU, expected_steps=10_000)
    assert receipt.setup == plain_setup(RECIPE)


def test_a_candidate_that_fails_is_told_and_costs_only_itself() -> None:
    def make_step(setup: Setup) -> Callable[[], object]:
        def step() -> None:
            time.sleep(0.006)
            if setup.precision == "bf16":
                raise RuntimeError("could not create a primitive\nat line 3")

        return step

    receipt = tune(RECIPE, make_step, device=CPU, expected_steps=10_000)
    assert receipt.setup.precision == "fp32"
    failed = next(trial for trial in receipt.trials if trial.name == "bf16")
    assert (failed.kept, failed.note) == (False, "RuntimeError: could not create a primitive")


def test_what_the_recipe_fixes_is_not_tried() -> None:
    fixed = dataclasses.replace(RECIPE, precision="fp32", channels_last=True)
    receipt = tune(fixed, sleeper(lambda setup: 1.0), device=CPU, expected_steps=10_000)
    assert receipt.trials == ()
    assert receipt.setup == Setup(precision="fp32", channels_last=True, threads=1)


def test_a_run_too_short_to_earn_a_trial_back_is_not_tried() -> None:
    receipt = tune(RECIPE, sleeper(lambda setup: 1.0), device=CPU, expected_steps=20)
    assert (receipt.source, receipt.trials) == ("skipped", ())
    assert receipt.setup == plain_setup(RECIPE)


def test_compiling_must_save_more_than_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_module, "COMPILE_MIN_SECONDS", {"cpu": 0.0})
    recipe = dataclasses.replace(RECIPE, precision="fp32", channels_last=False)

    def make_step(setup: Setup) -> Callable[[], object]:
        first = True

        def step() -> None:
            nonlocal first
            if setup.compile and first:
                time.sleep(0.3)
            first = False
            time.sleep(0.002 if setup.compile else 0.004)

        return step

    # 1,000 steps of 4 ms save 2 s by compiling: more than twice the 0.3 s
    assert tune(recipe, make_step, device=CPU, expected_steps=1_000).setup.compile
    # 200 steps save 0.4 s: not enough
    assert not tune(recipe, make_step, device=CPU, expected_steps=200).setup.compile


def test_a_receipt_is_kept_for_the_machine_and_its_questions(tmp_path: Path) -> None:
    path = receipt_path(tmp_path, {"device": "a", "model": "b"})
    assert path != receipt_path(tmp_path, {"device": "a", "model": "c"})
    receipt = tune(RECIPE, sleeper(lambda setup: 1.0), device=CPU, expected_steps=10_000, path=path)
    stored = stored_receipt(path)
    assert stored is not None
    assert stored == dataclasses.replace(receipt, source="cached", seconds=0.0)
    path.write_text("{}")
    assert stored_receipt(path) is None
    assert stored_receipt(tmp_path / "none.json") is None


def test_a_run_measures_once_and_the_next_one_believes_the_receipt(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    # so that the tiny run is thought long enough
    monkeypatch.setattr(tune_module, "MAX_SHARE", 1e9)
    auto: dict[str, Any] = {"precision": "auto", "channels_last": "auto"}
    first = run_tiny("first", auto, tune=True)
    second = run_tiny("second", auto, tune=True)
    receipts = [json.loads((result.run / "tune.json").read_text()) for result in (first, second)]
    assert [receipt["source"] for receipt in receipts] == ["measured", "cached"]
    assert receipts[0]["setup"] == receipts[1]["setup"]
    recipe = (first.run / "recipe.yaml").read_text()
    # nothing is left to be decided: the recipe of the run reproduces it
    assert "auto" not in recipe
    assert list((own_cache / "tune").glob("*.json"))


def test_switched_off_nothing_is_tried(run_tiny: RunTiny, own_cache: Path) -> None:
    result = run_tiny(changes={"precision": "auto", "compile": "auto"}, tune=False)
    receipt = json.loads((result.run / "tune.json").read_text())
    assert (receipt["source"], receipt["trials"]) == ("off", [])
    assert receipt["setup"]["precision"] == "fp32"
    assert not (own_cache / "tune").exists()
