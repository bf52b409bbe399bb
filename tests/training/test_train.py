"""vivace.train from end to end on tiny folders: recipes, balance, tracking, the public names."""

from __future__ import annotations

import csv
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
from vivace.config import from_yaml, to_yaml
from vivace.data.loader import Batches
from vivace.errors import ConfigError, MissingExtra
from vivace.training.facts import measure_facts
from vivace.training.recipe import Recipe
from vivace.training.recipes import RECIPES, DataFacts, resolve_recipe
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]
MakeFolder = Callable[..., Path]
FEW = DataFacts(num_images=100, num_classes=3, channels=3, side=40)


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
    tuned = bundle_weights(result)
    assert tuned["fc.weight"].shape[0] == 3
    start = torch.load(weights, weights_only=True)
    # with a decay of 0.75 a layer the stem hardly moves
    name = "conv1.0.weight" if "conv1.0.weight" in start else "conv1.weight"
    difference = (tuned[name] - start[name]).norm() / start[name].norm()
    assert 0 < difference < 0.2


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_networks_of_timm_train_at_small_size(name: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    result = vivace.train(
        make_folder(per_class=4),
        epochs=1,
        run=tmp_path / "run",
        tune=False,
        quiet=True,
        overrides={"model.name": f"timm/{name}", "model.arguments": {}, "data.size": 32, "batch_size": 4},
    )
    bundle = vivace.load(result.bundle)
    assert bundle.info.architecture.name == f"timm/{name}"
    assert result.num_images_seen == 9


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


def test_balancing_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^classes would be balanced twice"):
        resolve_with({"data": {"balanced_sampling": True}, "loss": {"class_weights": "balanced"}})


def resolve_with(tree: dict[str, Any]) -> Recipe:
    from vivace.config import from_dict

    return from_dict(Recipe, tree)


def test_the_test_split_chooses_nothing(run_tiny: RunTiny, make_folder: MakeFolder) -> None:
    data = make_folder("splits", splits=("train", "val", "test"))
    first = run_tiny("first", data=data, changes={"early_stopping": 2})
    # other test images under other labels: the same training
    for path, other in zip(
        sorted((data / "test" / "red").iterdir()), sorted((data / "test" / "blue").iterdir()), strict=True
    ):
        first_bytes, second_bytes = path.read_bytes(), other.read_bytes()
        path.write_bytes(second_bytes)
        other.write_bytes(first_bytes)
    second = run_tiny("second", data=data, changes={"early_stopping": 2})
    assert_same_weights(first, second)
    assert first.test_top1 is not None
    assert first.test_top1 != second.test_top1


def test_curves_are_recorded_as_a_table_and_as_events(run_tiny: RunTiny) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run_tiny()
    with (result.run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows] == [1, 2, 3]
    events = EventAccumulator(str(result.run / "tensorboard")).Reload()
    for group, column in (("train/loss", "train_loss"), ("val/top1", "val_top1"), ("run/lr", "lr")):
        found = [event.value for event in events.Scalars(group)]
        assert found == pytest.approx([float(row[column]) for row in rows], rel=1e-5)
    assert float(rows[-1]["val_top1"]) == pytest.approx(result.val_top1)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 32, 300])
def test_every_recipe_goes_to_yaml_and_back(name: str, channels: int, side: int) -> None:
    facts = DataFacts(num_images=50_000, num_classes=10, channels=channels, side=side)
    recipe = resolve_recipe(name, facts)
    assert from_yaml(Recipe, to_yaml(recipe)) == recipe
    # digits and letters are not themselves in a mirror
    if channels == 1 and name != "fast" and name != "accurate":
        assert recipe.augment.flip == "none"


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^--recipe is unknown: got 'fats'\. Did you mean 'fast'"):
        resolve_recipe("fats", FEW)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm"),
        ({"micro_batch_size": 65}, "micro_batch_size"),
        ({"precision": "fp8"}, "precision"),
        ({"validate_every": 0.0}, "validate_every"),
        ({"threads": 0}, "threads"),
        ({"head_epochs": 1}, "head_epochs"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        dataclasses.replace(Recipe(), **changes)
    assert repr(next(iter(changes.values()))) in str(caught.value)


def test_facts_tell_small_images_from_photos(make_folder: MakeFolder) -> None:
    from vivace.data.sources import open_source

    facts = measure_facts(open_source(make_folder(per_class=5)))
    assert (facts.num_images, facts.num_classes, facts.channels, facts.side) == (15, 3, 3, 36)
    assert facts.small
    pytest.importorskip("sklearn")
    digits = measure_facts(open_source("digits"))
    assert (digits.channels, digits.side, digits.num_classes) == (1, 8, 10)


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


def test_figures_without_their_library_name_the_extra() -> None:
    assert "pip install 'vivace[report]'" in str(MissingExtra("matplotlib", "report", "drawing curves"))
