"""Runs that start from a trained run: classes and images are added, the old run stays as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import Killed, die_after
from safetensors.torch import load_file
from same_weights import assert_same_weights

from colours import noisy_image
from vivace.bundle import load_bundle
from vivace.cli import main
from vivace.config import from_yaml, override
from vivace.data.holdout import hold_out
from vivace.errors import BundleError, CheckpointError, ConfigError
from vivace.training.loop import start
from vivace.training.recipes.implied import with_implied
from vivace.training.recipes.named import RECIPES, DataFacts
from vivace.training.recipes.origin import with_origin
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import TrainResult
from vivace.training.train import train

RunTiny = Callable[..., TrainResult]


def add_class(root: Path, name: str, colour: tuple[int, int, int], count: int = 8) -> None:
    (root / name).mkdir()
    for index in range(count):
        noisy_image(colour, sum(map(ord, name)) + index).save(root / name / f"{index:03d}.png")


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def more(make_folder: Callable[..., Path]) -> Path:
    """The images that `run_tiny` trains on without the blue ones, and two classes more."""
    root = make_folder("more")
    shutil.rmtree(root / "blue")
    add_class(root, "yellow", (220, 210, 40))
    add_class(root, "black", (20, 20, 20))
    return root


def test_known_classes_keep_their_rows_new_ones_are_added_and_the_old_run_stays(
    run_tiny: RunTiny, more: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_tiny("first")
    before = contents(first.run)
    started: list[dict[str, torch.Tensor]] = []
    continued = start._continued

    def recorded(*arguments: object, **options: object) -> start.Start:
        made = continued(*arguments, **options)  # type: ignore[arg-type]
        started.append({name: tensor.clone() for name, tensor in made.model.state_dict().items()})
        return made

    monkeypatch.setattr(start, "_continued", recorded)
    second = run_tiny("second", data=more, start_from=first.run, quiet=False)
    said = capsys.readouterr().err
    assert f"starting from {first.run}: 2 classes kept, 2 new: black, yellow; 1 left out: blue\n" in said
    assert contents(first.run) == before
    old, bundle = load_bundle(first.bundle), load_bundle(second.bundle)
    assert bundle.classes == ("black", "green", "red", "yellow")
    weights = load_file(first.bundle / "model.safetensors")
    (new,) = started
    for name, tensor in new.items():
        if tensor.shape == weights[name].shape:
            torch.testing.assert_close(tensor, weights[name])
        else:
            torch.testing.assert_close(tensor[[1, 2]], weights[name][[1, 2]])
            torch.testing.assert_close(tensor[0], weights[name][[1, 2]].mean(0))
    assert bundle.preprocess == old.preprocess
    assert bundle.info.architecture.arguments == old.info.architecture.arguments
    record = bundle.info.starting_weights
    assert record == json.loads((second.run / "run.json").read_text())["weights"]
    assert (record["kind"], record["from"]) == ("run", "first")
    assert record["classes"] == "2 classes kept, 2 new: black, yellow; 1 left out: blue"


def test_what_was_trained_on_is_neither_held_out_nor_forgotten(run_tiny: RunTiny, more: Path) -> None:
    first = run_tiny("first")
    second = run_tiny("second", {"seed": 7}, data=more, start_from=first.bundle)
    known, all_known = load_bundle(first.bundle).trained_on(), load_bundle(second.bundle).trained_on()
    assert known is not None
    assert all_known is not None
    # blue images too, which the new data do not have
    assert np.isin(known.numbers_n, all_known.numbers_n).all()
    # 4 classes of 8 images, of which 2 each are held out; 18 of the first run, 12 of them in these data
    assert len(known) == 18
    assert len(all_known) == 18 + 12


def test_images_that_are_not_known_are_held_out_first() -> None:
    labels, groups = np.repeat([0, 1], 10), np.arange(20)
    known = np.ones(20, dtype=bool)
    known[[3, 7, 12]] = False
    _, held = hold_out(labels, groups, 0.2, seed=1, known_N=known)
    assert {3, 7, 12} <= set(held)
    assert len(held) == 4
    np.testing.assert_array_equal(
        hold_out(labels, groups, 0.2, seed=1, known_N=np.ones(20, dtype=bool))[1],
        hold_out(labels, groups, 0.2, seed=1)[1],
    )


def test_validation_images_that_were_trained_on_are_reported(
    run_tiny: RunTiny, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    first = run_tiny("first")
    split = tmp_path / "split"
    shutil.copytree(tmp_path / "colours", split / "val")
    make_folder("others", per_class=9)
    for label in ("blue", "green", "red"):
        (split / "train" / label).mkdir(parents=True)
        # the first eight are those of val
        noisy_image((100, 100, 100), len(label)).save(split / "train" / label / "a.png")
        shutil.copy(tmp_path / "others" / label / "008.png", split / "train" / label / "b.png")
    second = run_tiny("second", {"batch_size": 4}, data=split, start_from=first.run)
    assert any(
        "18 of 24 val images are among those that the run it starts from was trained on" in w for w in second.warnings
    )


def test_a_calibrated_head_is_taken_as_it_was_before_calibration(
    run_tiny: RunTiny, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder("many", per_class=160)
    first = run_tiny("first", {"calibrate": True, "epochs": 1, "batch_size": 60}, data=data)
    assert first.temperature is not None
    scales: list[float] = []
    monkeypatch.setattr(start, "scale_head", lambda model, factor: scales.append(factor))
    run_tiny("second", {"epochs": 1, "batch_size": 60}, data=data, start_from=first.run)
    assert scales == [first.temperature]


def test_a_run_that_started_from_another_is_resumed_bitwise_as_long_as_that_is_there(
    run_tiny: RunTiny, more: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = run_tiny("first")
    unbroken = run_tiny("unbroken", data=more, start_from=first.run)
    with monkeypatch.context() as patch:
        die_after(patch, 7)
        with pytest.raises(Killed):
            run_tiny("killed", data=more, start_from=first.run)
    first.run.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="needed to hold out the same images"):
        run_tiny("killed", resume=True, data=more)
    (tmp_path / "moved").rename(first.run)
    assert_same_weights(unbroken, run_tiny("killed", resume=True, data=more))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "fast_photo"}, r"`start_from` can't go with `model`.*'fast_photo'"),
        ({"pretrained": True}, r"`start_from` can't go with `pretrained`"),
        ({"weights": "x.pth"}, r"`start_from` can't go with `weights`"),
        ({"from_scratch": True}, r"`from_scratch` can't go with `start_from`"),
    ],
)
def test_another_start_beside_it_is_refused_before_anything_is_opened(
    run_tiny: RunTiny, options: dict[str, object], message: str
) -> None:
    first = run_tiny("first")
    with pytest.raises(ConfigError, match=message):
        train("no such data", start_from=first.run, **options)  # type: ignore[arg-type]


def test_what_is_no_run_is_refused_before_the_data_are_opened(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        train("no such data", start_from=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"two kinds of weights.*model\.start_from 'a' and model\.weights"):
        override(Recipe(), {"model.start_from": "a", "model.weights": "b"})


def test_data_of_none_of_its_classes_get_a_new_head_which_is_said(
    run_tiny: RunTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_tiny("first")
    others = tmp_path / "others"
    others.mkdir()
    for name, colour in (("black", (20, 20, 20)), ("white", (240, 240, 240))):
        add_class(others, name, colour)
    second = run_tiny("second", data=others, start_from=first.run)
    assert any("no class of the data is known" in warning for warning in second.warnings)


def test_named_recipes_take_network_size_and_pixels_of_the_run_and_a_lower_rate(run_tiny: RunTiny) -> None:
    first = run_tiny("first")
    name, changes = with_origin("auto", {"model.start_from": str(first.run)})
    assert name == "fast"
    base = RECIPES["fast"](DataFacts(num_images=100, num_classes=3, channels=3, side=16))
    recipe = override(base, with_implied(base, changes))
    assert recipe.model.arguments["widths"] == [8, 16]
    assert (recipe.data.size, recipe.data.store_size) == (16, 20)
    assert recipe.data.mean == load_bundle(first.bundle).preprocess.mean
    assert recipe.optimizer.lr < base.optimizer.lr
    assert recipe.epochs < base.epochs
    # what is said comes last
    changed = {**changes, "optimizer.lr": 0.3, "epochs": 50}
    said = override(base, with_implied(base, changed))
    assert (said.optimizer.lr, said.epochs) == (0.3, 50)


def test_the_command_line_calls_it_from(run_tiny: RunTiny, more: Path, tmp_path: Path) -> None:
    first = run_tiny("first")
    options = ["--epochs", "1", "--batch-size", "12", "--tune", "off", "--quiet", "--run", str(tmp_path / "second")]
    assert main(["train", str(more), "--from", str(first.run), *options]) == 0
    recipe = from_yaml(Recipe, tmp_path / "second" / "recipe.yaml")
    assert recipe.model.start_from == str(first.run)
    assert recipe.data.size == 16


def test_its_messages_name_the_option(run_tiny: RunTiny, more: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_tiny("first")
    assert main(["train", str(more), "--from", str(first.run), "--model", "fast_photo"]) == 2
    assert "--from can't go with --model" in capsys.readouterr().err
