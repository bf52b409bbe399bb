"""Fine-tuning in stages: the head is solved on features of the frozen network; then its last stages are trained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from killing import Killed, die_after
from PIL import Image
from safetensors.torch import save_file
from same_weights import assert_same_weights
from torch import nn

import vivace
from vivace import systems
from vivace.bundle import load_bundle
from vivace.errors import ConfigError, MissingExtra
from vivace.models import frozen
from vivace.models.zoo import create_model
from vivace.training.finetuning import features, following, solving, stages
from vivace.training.folder.checkpoints import load_checkpoint, load_newest, save_checkpoint
from vivace.training.recipes.named import PACKAGED_NETWORK, DataFacts, auto, finetune, reason, starts_from_weights
from vivace.training.recipes.recipe import Recipe

MakeFolder = Callable[..., Path]
SIZE = 64


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all tests: making the graph of a network takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def data(make_folder: MakeFolder, graphs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """36 images of three classes."""
    monkeypatch.setenv("VIVACE_CACHE", str(graphs))
    return make_folder(per_class=12)


def train(data: Path, run: Path, **options: Any) -> vivace.TrainResult:
    options = {"recipe": "finetune", "size": SIZE, **options}
    return vivace.train(data, run=run, quiet=True, **options)


def changed(result: vivace.TrainResult) -> set[str]:
    """Names of the weights that are no longer the published ones."""
    start = create_model(PACKAGED_NETWORK, 1000, size=SIZE, pretrained=True).state_dict()
    found = load_bundle(result.bundle).build_model().state_dict()
    return {
        name for name, tensor in found.items() if tensor.shape != start[name].shape or (tensor != start[name]).any()
    }


def test_the_head_is_solved_and_the_body_stays(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", epochs=0)
    assert result.epochs == 0
    assert result.val_top1 == 1.0
    # it and its mirror image
    assert result.num_images_seen == 2 * 33
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (record["epochs"], record["num_images_seen"]) == (0, 66)
    info = load_bundle(result.bundle).info
    assert info.recipe["finetune"] == {"head": True, "trains": "auto", "cut": None, "views": 4, "runtime": "auto"}
    assert changed(result) == {"classifier.weight", "classifier.bias"}
    # what the features said of the validation images is what the bundle says of them
    assert vivace.evaluate(result.bundle, data, split="val").metrics.top1 == result.val_top1


def test_the_last_stages_are_trained_and_the_front_stays(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", epochs=1, lr=1e-4, batch_size=11)
    assert result.epochs == 1
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1"]
    recipe = load_bundle(result.bundle).info.recipe
    assert recipe["finetune"] == {
        "head": True, "trains": "last", "cut": "blocks.5.0", "views": 4, "runtime": "openvino"
    }  # fmt: skip
    stages = ("blocks.5.1.", "blocks.5.2.", "blocks.5.3.", "blocks.6.", "conv_head.", "bn2.", "classifier.")
    assert all(name.startswith(stages) for name in changed(result))
    assert "blocks.6.0.conv_pw.weight" in changed(result)
    # statistics of batch norm are those of ImageNet still
    assert not any("running" in name or "num_batches" in name for name in changed(result))
    assert vivace.evaluate(result.bundle, data, split="val").metrics.top1 == result.val_top1


def test_the_whole_network_is_trained_if_the_recipe_says_so(data: Path, tmp_path: Path) -> None:
    overrides = {"finetune.trains": "whole"}
    result = train(data, tmp_path / "run", epochs=1, tune=False, lr=1e-2, batch_size=11, overrides=overrides)
    assert result.epochs == 1
    # of the last step, whether or not validation found it better than the head alone
    tree, _, _ = load_newest(tmp_path / "run" / "checkpoints")
    assert tree is not None
    start = create_model(PACKAGED_NETWORK, 1000, size=SIZE, pretrained=True).state_dict()
    assert (tree["model"]["conv_stem.weight"] != start["conv_stem.weight"]).any()


def test_last_stages_that_were_killed_go_on_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 2, "lr": 1e-4, "batch_size": 11}
    unbroken = train(data, tmp_path / "unbroken", **options)
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            train(data, tmp_path / "killed", **options)
    resumed = vivace.train(data, run=tmp_path / "killed", resume=True, quiet=True)
    assert_same_weights(unbroken, resumed)
    assert resumed.epochs == 2


def test_maps_that_do_not_fit_into_memory_are_kept_in_a_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 1, "lr": 1e-4, "batch_size": 11, "overrides": {"finetune.views": 3}}
    in_memory = train(data, tmp_path / "memory", **options)
    monkeypatch.setattr(features, "MAX_MEMORY_FRACTION", 0.0)
    reserved: list[int] = []
    reserve = systems.reserve
    monkeypatch.setattr(systems, "reserve", lambda file, size: (reserved.append(size), reserve(file, size)))
    in_file = train(data, tmp_path / "file", **options)
    # three views of 33 images and one of 3: bf16 maps of 192 channels, 2 × 2
    assert sorted(reserved) == [2 * 3 * 192 * 4, *[2 * 33 * 192 * 4] * 3]
    assert_same_weights(in_memory, in_file)


def test_last_stages_that_can_not_be_trained_are_refused(data: Path, tmp_path: Path) -> None:
    overrides = {"finetune.trains": "last"}
    with pytest.raises(ConfigError, match=r"last stages can't be trained: timm/vit_tiny.* can't be cut in two"):
        train(data, tmp_path / "run", model="timm/vit_tiny_patch16_224", weights=vit(tmp_path), overrides=overrides)
    with pytest.raises(ConfigError, match="can't be cut in two after blocks"):
        train(data, tmp_path / "run", overrides={"finetune.cut": "blocks"})
    assert not (tmp_path / "run").exists()


def vit(folder: Path) -> Path:
    """Weights of a vision transformer."""
    model = create_model("timm/vit_tiny_patch16_224", 3, size=SIZE)
    save_file(model.state_dict(), folder / "vit.safetensors")
    return folder / "vit.safetensors"


def test_a_head_that_training_spoils_is_kept(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = vivace.train(
        data,
        run=tmp_path / "run",
        recipe="finetune",
        size=SIZE,
        epochs=1,
        tune=False,
        lr=3.0,
        batch_size=11,
        overrides={"clip_grad_norm": None},
    )
    assert result.val_top1 == 1.0
    assert result.saved_epoch == 0.0
    assert "the head alone is kept: 100.0 % on validation, " in capsys.readouterr().err


def test_a_resumed_run_keeps_a_head_that_training_spoils(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"epochs": 2, "lr": 3.0, "batch_size": 11, "overrides": {"clip_grad_norm": None}}
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            train(data, tmp_path / "run", **options)
    result = vivace.train(data, run=tmp_path / "run", resume=True)
    assert (result.val_top1, result.saved_epoch) == (1.0, 0.0)
    assert "the head alone is kept: 100.0 % on validation, " in capsys.readouterr().err
    assert changed(result) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(("loss", "kept"), [(0.4, 1.0), (0.6, 0.0)])
def test_where_few_images_can_not_tell_the_loss_decides_what_is_kept(loss: float, kept: float) -> None:
    rows = [{"step": 0, "val_top1": 0.95, "val_loss": 0.5}, {"step": 9, "val_top1": 0.9, "val_loss": loss}]
    network = nn.Linear(1, 1)
    before = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    engine: Any = SimpleNamespace(
        recipe=Recipe(),
        counters=SimpleNamespace(history=rows),
        state=SimpleNamespace(averaged_model=network),
        saved_epoch=1.0,
    )
    session: Any = SimpleNamespace(part=None, data=SimpleNamespace(num_val=20), answers=None)
    stage: Any = SimpleNamespace(name=stages.HEAD_ALONE, weights=before, answers=None)
    told: list[str] = []
    stages.keep_better(session, engine, stage, told.append)
    assert engine.saved_epoch == kept
    assert (network.weight.abs().sum() == 0) == (kept == 0.0)
    assert ("the head alone is kept" in told[0]) == (kept == 0.0)


def test_a_finished_run_goes_on_with_the_whole_network(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", epochs=0)
    result = vivace.train(data, run=tmp_path / "run", resume=True, epochs=1, tune=False, quiet=True)
    assert result.epochs == 1


@pytest.mark.parametrize(("enough", "expected"), [(512, 66), (20, 33), (7, 7)])
def test_a_target_that_the_head_reaches_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: int, expected: int
) -> None:
    monkeypatch.setattr(solving, "MIN_IMAGES", enough)
    result = train(data, tmp_path / "run", target=0.9)
    assert (result.epochs, result.target_reached) == (0, True)
    # of more images no mirror images, which take as long again; of many a part
    assert result.num_images_seen == expected
    # nothing is tried out for steps that never come
    assert json.loads((tmp_path / "run" / "tune.json").read_text())["source"] == "off"
    assert load_bundle(result.bundle).info.recipe["epochs"] == 0


def test_with_little_time_the_head_is_solved_on_some_images_of_each_class(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # as if nothing were left of the budget for features
    monkeypatch.setattr(solving, "LEAST_SECONDS_AFTER", 3600.0)
    monkeypatch.setattr(solving, "MIN_IMAGES", 7)
    result = vivace.train(data, recipe="finetune", size=SIZE, within="60s", run=tmp_path / "run")
    assert (result.epochs, result.num_images_seen) == (0, 7)
    assert "time is left for 7 training images: the head is solved on these. Give a longer" in capsys.readouterr().err
    assert changed(result) == {"classifier.weight", "classifier.bias"}


def test_some_images_are_of_each_class_as_many_as_it_has_more() -> None:
    labels = torch.tensor([0] * 90 + [2] * 9 + [1])
    rows = solving._of_each_class(labels, 20, seed=0)
    assert labels[rows].bincount().tolist() == [17, 1, 2]
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert labels[solving._of_each_class(labels, 1, seed=0)].tolist() == [0, 2, 1]
    assert len(solving._of_each_class(labels, 1000, seed=0)) == 100


def test_last_stages_go_on_with_the_runtime_that_they_began_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            train(data, tmp_path / "run", epochs=2, lr=1e-4, batch_size=11)

    def absent() -> None:
        raise MissingExtra("OpenVINO", "openvino", "this test")

    monkeypatch.setattr(frozen, "library", absent)
    with pytest.raises(ConfigError, match=r"finetune.runtime=openvino is not possible here: OpenVINO is not installed"):
        vivace.train(data, run=tmp_path / "run", resume=True, quiet=True)
    by_torch = train(data, tmp_path / "torch", epochs=1, lr=1e-4, batch_size=11)
    assert load_bundle(by_torch.bundle).info.recipe["finetune"]["runtime"] == "torch"


def test_weights_that_are_not_finite_do_not_replace_those_of_the_loop(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"epochs": 2, "lr": 3.0, "batch_size": 11, "overrides": {"clip_grad_norm": None}}
    with monkeypatch.context() as patch:
        die_after(patch, 4)
        with pytest.raises(Killed):
            train(data, tmp_path / "run", **options)
    path = tmp_path / "run" / "checkpoints" / "before.safetensors"
    tree = load_checkpoint(path)
    save_checkpoint(path, {**tree, "model": {name: torch.full_like(t, 0) / 0 for name, t in tree["model"].items()}})
    vivace.train(data, run=tmp_path / "run", resume=True)
    assert "the last weights are kept, although those before the loop were better" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "after", "num_images", "is_noise"), [
    (1.0, 0.8, 5, True), (1.0, 0.0, 3, False), (0.92, 0.915, 736, True), (0.92, 0.90, 736, False),
])  # fmt: skip
def test_few_images_can_not_tell_a_stage_from_the_one_before(
    before: float, after: float, num_images: int, is_noise: bool
) -> None:
    assert (before - after <= stages._noise(before, after, num_images)) == is_noise


def test_a_target_that_last_stages_miss_is_tried_with_the_whole_network(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "EPOCHS", 1)
    monkeypatch.setattr(solving, "MIN_IMAGES", 20)
    solved: list[tuple[int, bool]] = []
    fit_head = solving.fit_head
    monkeypatch.setattr(
        solving, "fit_head", lambda x, *a, **k: (solved.append((len(x), k["is_quick"])), fit_head(x, *a, **k))[1]
    )
    options = {"target": 0.99, "epochs": 1, "batch_size": 11, "tune": False}
    result = vivace.train(noise, recipe="finetune", size=SIZE, run=tmp_path / "run", **options)
    told = capsys.readouterr().err
    # first on the images alone, as that is often enough
    assert solved == [(33, True), (66, False)]
    assert re.search(
        r"the last stages have 0\.\d+ on validation, the target is 0\.99: training the whole network", told
    )
    assert result.target_reached is False
    recipe = json.loads((tmp_path / "run" / "result.json").read_text())
    assert recipe["target_reached"] is False
    assert load_bundle(result.bundle).info.recipe["finetune"]["trains"] == "whole"
    # what came before the whole network is the row before its first step
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[-2:]] == ["0", "1"]


@pytest.fixture
def noise(tmp_path: Path, graphs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """36 images of noise in three classes, which nothing can tell apart."""
    monkeypatch.setenv("VIVACE_CACHE", str(graphs))
    generator = np.random.default_rng(0)
    for name in ("blue", "green", "red"):
        (tmp_path / "noise" / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "noise" / name / f"{number}.png")
    return tmp_path / "noise"


def test_options_of_epochs_are_said_to_be_unused(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", lr=0.1, epochs=0)
    assert any(line.startswith("optimizer.lr is not used: the head alone is trained") for line in result.warnings)


def test_from_scratch_with_weights_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`from_scratch` can't go with `pretrained` or `weights`"):
        train(data, tmp_path / "run", recipe="auto", pretrained=True, from_scratch=True)
    with pytest.raises(ConfigError, match="`from_scratch` can't go with the recipe 'finetune'"):
        vivace.train(data, "finetune", from_scratch=True, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"side": 192, "weights_at_hand": True}, "finetune"),
        ({"side": 192, "weights_at_hand": False}, "fast"),
        ({"side": 32, "weights_at_hand": True}, "fast"),
        ({"side": 192, "weights_at_hand": True, "channels": 1}, "fast"),
    ],
)
def test_the_default_recipe_follows_from_facts_and_says_why(facts: dict[str, Any], expected: str) -> None:
    known = DataFacts(**{"num_images": 200, "num_classes": 2, "channels": 3, **facts})
    assert auto(known).name == expected
    assert starts_from_weights(known) == (expected == "finetune")
    assert reason(known).startswith(f"{expected}: ")


def test_photos_that_are_made_small_are_trained_as_small_images(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in data.rglob("*.png"):
        Image.open(path).resize((160, 160)).save(path)
    result = vivace.train(data, size=32, epochs=1, tune=False, run=tmp_path / "run")
    assert load_bundle(result.bundle).info.architecture.name == "fast_cnn"
    assert "recipe: fast: small images (at 32 px) are trained from scratch" in capsys.readouterr().err


def test_many_images_are_varied_less_and_change_all_layers_alike() -> None:
    few, many = (finetune(DataFacts(num_images=n, num_classes=10, channels=3, side=96)) for n in (19_999, 20_000))
    assert (few.augment.mixup, few.optimizer.layer_decay) == (0.4, 0.75)
    assert (many.augment.mixup, many.optimizer.layer_decay) == (0.0, 1.0)
    assert many.augment.random_resized_crop[0] > few.augment.random_resized_crop[0]
