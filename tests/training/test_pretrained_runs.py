"""Runs that start from published weights: what they say, what they and their bundles record, how they are resumed."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vivace.bundle import load_bundle
from vivace.cachedir import default_cache_dir
from vivace.cli import main
from vivace.models import packaged
from vivace.models.packaged import PACKAGED
from vivace.models.pretrained import find_weights
from vivace.training.train import planned_recipe

MakeFolder = Callable[..., Path]
NAME = "timm/tf_efficientnet_lite0"
# nothing is learnt from 24 images in one epoch, and that is said
OPTIONS = ["--model", NAME, "--pretrained", "--size", "32", "--epochs", "1", "--lr", "1e-5", "--batch-size", "12"]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **keywords: object) -> None:
        pytest.fail(f"a socket was used: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_run_from_a_package_says_so_keeps_it_and_is_resumed_without_the_package(
    make_folder: MakeFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_network: None,
) -> None:
    data, run = make_folder(per_class=12), tmp_path / "run"
    assert main(["train", str(data), *OPTIONS, "--recipe", "fast", "--tune", "off", "--run", str(run)]) == 0
    said = capsys.readouterr().err
    assert f"{find_weights(NAME).line()}; a new head for 3 classes in place of 1,000\n" in said
    bundle = load_bundle(run / "bundle")
    weights = bundle.info.starting_weights
    assert weights == json.loads((run / "run.json").read_text())["weights"]
    assert (weights["kind"], weights["sha256"]) == ("package", PACKAGED[0].sha256)
    assert "Apache-2.0" in weights["license"]
    assert bundle.preprocess.mean == (127 / 255,) * 3
    # at this learning rate the weights are still near those that they started from
    started = load_file(PACKAGED[0].cached(default_cache_dir()))["blocks.3.1.conv_pw.weight"]
    found = load_file(run / "bundle" / "model.safetensors")["blocks.3.1.conv_pw.weight"]
    assert 0 < (found - started).abs().max() < 0.05

    # the pixels of a resumed run are those that it began with, whatever is installed
    monkeypatch.setattr(packaged.PackagedWeights, "path", None)
    assert main(["train", str(data), "--resume", "--run", str(run), "--epochs", "2", "--tune", "off"]) == 0
    resumed = load_bundle(run / "bundle").info
    assert resumed.preprocess == bundle.preprocess
    assert resumed.starting_weights == weights


def test_a_run_from_a_file_records_its_name_and_hash(
    run_tiny: Callable,
) -> None:
    first = run_tiny("first")
    again = run_tiny("again", {"model.weights": str(first.run)})
    weights = load_bundle(again.bundle).info.starting_weights
    manifest = json.loads((first.bundle / "bundle.json").read_text())
    assert weights == {
        "kind": "file",
        "from": "model.safetensors",
        "sha256": manifest["files"]["model.safetensors"]["sha256"],
    }
    assert load_bundle(first.bundle).info.starting_weights == {}
    # its pixels are normalised as the weights know them
    assert load_bundle(again.bundle).preprocess.mean == load_bundle(first.bundle).preprocess.mean


def test_the_resolved_recipe_holds_the_pixels_of_the_weights(make_folder: MakeFolder) -> None:
    data = make_folder(per_class=4)
    changes = {"model.name": NAME, "model.pretrained": True}
    recipe = planned_recipe(data, "finetune", changes)
    assert (recipe.data.size, recipe.data.interpolation) == (224, "bicubic")
    assert recipe.data.std == (128 / 255,) * 3
    bilinear = planned_recipe(data, "finetune", {"model.name": "timm/resnet18.tv_in1k", "model.pretrained": True})
    assert bilinear.data.interpolation == "bilinear"
    given = planned_recipe(data, "finetune", changes | {"data.size": 64, "data.mean": [0.1] * 3, "data.std": [1.0] * 3})
    assert (given.data.size, given.data.mean) == (64, (0.1,) * 3)
    # a file for a network of timm is taken for what timm describes, at the size of the data
    of_file = planned_recipe(data, "fast", {"model.name": "timm/resnet18", "model.weights": "w.pth"})
    assert (of_file.data.mean, of_file.data.size) == ((0.485, 0.456, 0.406), 32)
    grey = planned_recipe(data, "finetune", changes | {"data.channels": 1})
    assert grey.data.mean is None
