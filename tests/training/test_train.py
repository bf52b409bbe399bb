"""vivace.train from end to end on tiny folders: recipes, balance, reproduction, the public names."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from same_weights import assert_same_weights, bundle_weights

import vivace
from colours import noisy_image
from vivace.config import from_yaml
from vivace.data.loader import Batches
from vivace.errors import CheckpointError, ConfigError
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import TrainResult
from vivace.training.techniques import losses

RunTiny = Callable[..., TrainResult]
MakeFolder = Callable[..., Path]


@pytest.mark.parametrize("name", ["fast", "accurate", "article"])
def test_each_recipe_trains_on_small_images(name: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    result = vivace.train(
        make_folder(per_class=12),
        name,
        epochs=2,
        run=tmp_path / "run",
        tune=False,
        quiet=True,
        overrides={"data.size": 32},
    )
    assert result.epochs == 2
    assert json.loads((result.bundle / "bundle.json").read_text())["recipe"]["name"] == name
    assert all(bool(tensor.isfinite().all()) for tensor in bundle_weights(result).values())


@pytest.mark.parametrize("name", ["fast", "accurate"])
def test_each_recipe_trains_on_photos(name: str, tmp_path: Path) -> None:
    for label, colour in {"blue": (40, 60, 200), "red": (210, 50, 40)}.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(6):
            noisy_image(colour, index, (120, 100)).save(tmp_path / "photos" / label / f"{index}.jpg")
    result = vivace.train(tmp_path / "photos", name, epochs=1, run=tmp_path / "run", tune=False, quiet=True)
    recipe = from_yaml(Recipe, result.run / "recipe.yaml")
    assert recipe.model.name == "fast_photo"
    assert recipe.data.size == 128


def test_finetune_starts_from_local_weights_of_another_number_of_classes(
    run_tiny: RunTiny, make_folder: MakeFolder, tmp_path: Path
) -> None:
    from vivace.models.zoo import create_model

    torch.manual_seed(0)
    weights = tmp_path / "w.pth"
    torch.save(create_model("timm/test_resnet", 7).state_dict(), weights)
    result = vivace.train(
        make_folder("mine"),
        "finetune",
        epochs=2,
        run=tmp_path / "tuned",
        tune=False,
        quiet=True,
        overrides={
            "model.name": "timm/test_resnet",
            "model.weights": str(weights),
            "model.pretrained": False,
            "data.size": 32,
        },
    )
    assert from_yaml(Recipe, result.run / "recipe.yaml").finetune.head
    tuned = bundle_weights(result)
    assert tuned["fc.weight"].shape[0] == 3
    start = torch.load(weights, weights_only=True)
    # with a decay of 0.75 a layer the stem hardly moves
    name = "conv1.0.weight" if "conv1.0.weight" in start else "conv1.weight"
    difference = (tuned[name] - start[name]).norm() / start[name].norm()
    # still near the start, or at it where training the whole network did not help
    assert difference < 0.2


def write_unbalanced(root: Path) -> Path:
    for label, colour, count in (("many", (40, 60, 200), 30), ("few", (210, 50, 40), 6)):
        (root / label).mkdir(parents=True)
        for index in range(count):
            noisy_image(colour, index).save(root / label / f"{index}.png")
    return root


def test_balanced_sampling_shows_every_class_alike(
    run_tiny: RunTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    epoch = Batches.epoch

    def recording(self: Batches, *arguments: Any, **options: Any) -> Any:
        for batch in epoch(self, *arguments, **options):
            seen.extend(batch.labels_B.tolist())
            yield batch

    monkeypatch.setattr(Batches, "epoch", recording)
    data = write_unbalanced(tmp_path / "data")
    run_tiny("plain", {"epochs": 1}, data=data)
    shares = np.bincount(seen) / len(seen)
    assert shares.min() < 0.25
    seen.clear()
    run_tiny("balanced", {"epochs": 1, "data.balanced_sampling": True}, data=data)
    assert np.bincount(seen).tolist() in ([13, 14], [14, 13], [14, 14], [13, 13])


def test_class_weights_are_those_of_the_training_images(
    run_tiny: RunTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[torch.Tensor] = []
    image_weights = losses.image_weights

    def recording(weights_K: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weights.append(weights_K)
        return image_weights(weights_K, targets)

    monkeypatch.setattr(losses, "image_weights", recording)
    data = write_unbalanced(tmp_path / "data")
    result = run_tiny("weighted", {"epochs": 1, "loss.class_weights": "balanced"}, data=data)
    classes = vivace.load(result.bundle).info.classes
    assert classes == ("few", "many")
    # a quarter of each class is held out: of 6 and 30 images, about 4 and 23 train
    few, many = weights[0].tolist()
    assert few / many == pytest.approx(5, rel=0.25)
    assert all(torch.equal(weight, weights[0]) for weight in weights)
    weights.clear()
    run_tiny("plain", {"epochs": 1}, data=data)
    assert weights == []


def test_the_test_split_chooses_nothing(run_tiny: RunTiny, make_folder: MakeFolder) -> None:
    data = make_folder("splits", splits=("train", "val", "test"))
    first = run_tiny("first", data=data, changes={"early_stopping": 2})
    # the test images under each other's labels: the same training
    red, blue = data / "test" / "red", data / "test" / "blue"
    for path in sorted(red.iterdir()):
        other = blue / path.name
        pair = path.read_bytes(), other.read_bytes()
        other.write_bytes(pair[0])
        path.write_bytes(pair[1])
    second = run_tiny("second", data=data, changes={"early_stopping": 2})
    assert_same_weights(first, second)
    assert first.test_top1 is not None
    assert first.test_top1 != second.test_top1
    assert first.val_top1 == second.val_top1


def test_a_run_without_a_test_split_has_no_test_accuracy(run_tiny: RunTiny) -> None:
    result = run_tiny(changes={"epochs": 1})
    assert result.test_top1 is None
    assert "test" not in result.metrics
    saved = json.loads((result.run / "result.json").read_text())
    # the report is written after all that it tells of
    assert {**saved, "report": None} == result.to_dict()
    assert saved["test_top1"] is None
    # 18 of 24 images train, in batches of 6; the rest validate
    assert (saved["epochs"], saved["num_images_seen"]) == (1.0, 18)
    assert 0 < saved["train_seconds"] <= saved["total_seconds"]
    assert (saved["target_reached"], saved["within_seconds"]) == (None, None)


def test_the_recipe_of_a_run_reproduces_it_to_the_last_bit(make_folder: MakeFolder, tmp_path: Path) -> None:
    def run(name: str, recipe: str | Path, **options: Any) -> TrainResult:
        return vivace.train(data, recipe, run=tmp_path / name, quiet=True, **options)

    data = make_folder()
    changes = {"data.size": 16, "batch_size": 6, "data.val_fraction": 0.25}
    first = run("first", "fast", epochs=2, overrides=changes, tune=False)
    recipe = from_yaml(Recipe, first.run / "recipe.yaml")
    text = (first.run / "recipe.yaml").read_text()
    # policies, decided by nothing
    assert "auto" not in text.replace("on_bad_image: auto", "").replace("trains: auto", "").replace("runtime: auto", "")
    assert (recipe.data.store_size, recipe.data.channels, recipe.epochs) == (16, 3, 2)
    # nothing is left that a trial or the data could decide otherwise
    second = run("second", first.run / "recipe.yaml")
    third = run("third", str(first.run / "recipe.yaml"))
    assert_same_weights(first, second)
    assert_same_weights(first, third)
    other = run("other", first.run / "recipe.yaml", overrides={"seed": 1})
    assert not torch.equal(bundle_weights(first)["head.weight"], bundle_weights(other)["head.weight"])


def test_a_network_of_ones_own_does_not_get_the_arguments_of_the_recipes_network(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    def arguments(name: str, changes: dict[str, Any]) -> Any:
        result = vivace.train(
            make_folder(name, per_class=4),
            epochs=1,
            run=tmp_path / f"run-{name}",
            tune=False,
            quiet=True,
            overrides={"batch_size": 4, "data.size": 16, **changes},
        )
        return from_yaml(Recipe, result.run / "recipe.yaml").model.arguments

    assert arguments("same", {"model.name": "fast_cnn"})["stride"] == 2
    assert arguments("other", {"model.name": "timm/test_resnet"}) == {}
    asked = {"model.name": "timm/test_resnet", "model.arguments.drop_rate": 0.1}
    assert arguments("asked", asked) == {"drop_rate": 0.1}


@pytest.mark.parametrize("size", [96, "96"])
def test_a_size_chooses_the_recipe_for_images_of_that_size(
    size: int | str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    result = vivace.train(
        make_folder(per_class=4),
        epochs=1,
        run=tmp_path / "run",
        tune=False,
        quiet=True,
        overrides={"data.size": size, "batch_size": 4},
    )
    recipe = from_yaml(Recipe, result.run / "recipe.yaml")
    assert (recipe.model.name, recipe.data.size, recipe.data.store_size) == ("fast_photo", 96, 110)


def test_a_value_out_of_range_is_refused_before_there_is_a_run(make_folder: MakeFolder, tmp_path: Path) -> None:
    data = make_folder()
    for changes, message in (
        ({"data.size": 4}, r"^data\.size is out of range: got 4\. Give a value in \[8, 2048\]\.$"),
        ({"epochs": 0}, r"^epochs is out of range: got 0\. Give a value in \[1, 100000\]\.$"),
        ({"optimizer.lr": -1.0}, r"^optimizer\.lr is out of range: got -1\.0\. Give a value in \(0, 1e\+12\]\.$"),
        ({"optimzer.lr": 1.0}, r"^unknown key 'optimzer'\. Did you mean 'optimizer'"),
    ):
        with pytest.raises(ConfigError, match=message):
            vivace.train(data, run=tmp_path / "run", overrides=changes, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_takes_its_own_recipe_and_no_other(run_tiny: RunTiny, tmp_path: Path) -> None:
    first = run_tiny("run", {"epochs": 1})
    saved = first.run / "recipe.yaml"
    same = from_yaml(Recipe, saved)
    # what it leaves open was decided when the run began
    open_recipe = dataclasses.replace(same, precision="auto", threads="auto", channels_last="auto")
    for recipe in (saved, str(saved), same, open_recipe):
        assert run_tiny("run", resume=True, recipe=recipe).epochs == 1
    for recipe, difference in (
        ("article", "name: 'tiny' → 'article'"),
        (dataclasses.replace(same, batch_size=9), "batch_size: 6 → 9"),
        (dataclasses.replace(open_recipe, seed=1), "seed: 0 → 1"),
    ):
        with pytest.raises(CheckpointError, match="can't be resumed with another recipe") as caught:
            run_tiny("run", resume=True, recipe=recipe)
        assert difference in str(caught.value)
    # refused as it was, the run is not left locked
    assert run_tiny("run", resume=True, changes={"epochs": 2}).epochs == 2


def test_a_timed_run_is_not_resumed_by_epochs(run_tiny: RunTiny) -> None:
    run_tiny("run", within=0.5)
    with pytest.raises(ConfigError, match=r"^two budgets: the run was begun within 0\.5 s, and got epochs 9"):
        run_tiny("run", resume=True, epochs=9)


def option_defaults(verb: str) -> dict[str, Any]:
    from importlib import import_module

    found: dict[str, Any] = {}

    def collect(kind: type) -> None:
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(field.default_factory):
                collect(field.default_factory)
            elif field.default is not dataclasses.MISSING:
                found[field.name] = field.default

    collect(import_module(f"vivace.cli.{verb}").Options)
    return found


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_python_and_the_command_line_have_the_same_names_and_defaults(verb: str) -> None:
    parameters = inspect.signature(getattr(vivace, verb)).parameters
    options = option_defaults(verb)
    # the command line says on and off, Python True and False
    same = {"on": True, "off": False}
    shared = set(options) & set(parameters)
    assert {"train": 8, "evaluate": 5, "predict": 4}[verb] <= len(shared)
    for name in shared:
        default = parameters[name].default
        assert same.get(options[name], options[name]) == default, name
