"""Runs with an augmentation of the user's: recorded, resumed bitwise, and never imported by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Killed, die_after
from same_weights import assert_same_weights, bundle_weights
from torch import Tensor

from vivace.bundle import load_bundle
from vivace.config import from_yaml
from vivace.errors import CheckpointError, ConfigError
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import TrainResult
from vivace.training.train import train

RunTiny = Callable[..., TrainResult]


def noisy(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.float() + 20 * torch.randn(images_BCHW.shape)


def other(images_BCHW: Tensor) -> Tensor:
    return images_BCHW


@pytest.mark.parametrize("step", [1, 5])
def test_a_killed_run_with_random_numbers_of_its_own_ends_as_the_unbroken_one(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    unbroken = run_tiny("unbroken", augment=noisy)
    with monkeypatch.context() as patch:
        die_after(patch, step)
        with pytest.raises(Killed):
            run_tiny("killed", augment=noisy)
    assert_same_weights(unbroken, run_tiny("killed", resume=True, augment=noisy))
    plain = bundle_weights(run_tiny("plain"))
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in bundle_weights(unbroken).items())


def test_recipe_and_bundle_name_it_and_a_resumed_run_needs_it_again(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_tiny("run", augment=noisy).run
    name = from_yaml(Recipe, run / "recipe.yaml").augment.own
    assert name is not None
    assert name.startswith(f"{__name__}.noisy sha256:")
    assert load_bundle(run).info.recipe["augment"]["own"] == name
    with pytest.raises(ConfigError, match=r"has an augmentation of yours: got none, it names .*noisy"):
        run_tiny("run", resume=True, epochs=4)
    with pytest.raises(CheckpointError, match=r"another recipe: augment\.own: .*noisy.* → .*other"):
        run_tiny("run", resume=True, epochs=4, augment=other)
    assert run_tiny("run", resume=True, epochs=4, augment=noisy).epochs == 4


def test_a_recipe_that_names_one_imports_nothing(run_tiny: RunTiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has an augmentation of yours: got none"):
        run_tiny("run", {"augment.own": "antigravity.fly sha256:0"})
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_what_it_returns_is_checked_at_the_first_batch_and_the_run_leaves_no_folder(
    run_tiny: RunTiny, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"augment returned another shape"):
        run_tiny("run", augment=lambda images: images[:1])
    with pytest.raises(ConfigError, match=r"augment failed on .* RuntimeError: no blur today"):
        run_tiny("other", augment=failing)


def failing(images_BCHW: Tensor) -> Tensor:
    raise RuntimeError("no blur today")


def test_what_can_not_be_called_is_refused_before_the_data_are_opened() -> None:
    wrong: Any = {"flip": "random"}
    with pytest.raises(ConfigError, match="augment is no function"):
        train("no such data", augment=wrong)
