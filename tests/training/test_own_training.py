"""Training a network of the user's own: its recipe, its bundle with a graph, and resuming it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Killed, die_after
from same_weights import assert_same_weights, bundle_weights

import vivace
from own_nets import Failing, Net, Noisy, Unexportable, nets_file, quick
from vivace.bundle import load_bundle
from vivace.config import from_yaml
from vivace.errors import BundleError, CheckpointError, ConfigError, ModelError, TrainingError
from vivace.training.recipes.implied import with_implied
from vivace.training.recipes.named import DataFacts, resolve_recipe

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
MakeFolder = Callable[..., Path]
MANY = DataFacts(num_images=50_000, num_classes=10, channels=3, side=32)


def test_a_trained_network_of_ones_own_predicts_without_its_code(
    make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_folder(splits=("train", "val"))
    result = vivace.train(data, model=Net, **quick(tmp_path, overrides={"model.arguments": {"width": 6}}))
    assert result.no_graph is None
    assert not any("graph" in warning for warning in result.warnings)
    assert "network: own_nets.py:Net, random weights" in capsys.readouterr().err
    bundle = load_bundle(result.bundle)
    architecture = bundle.info.architecture
    assert (architecture.name, architecture.arguments) == ("own/own_nets.py:Net", {"width": 6})
    assert bundle.info.network["kind"] == "class"
    assert len(bundle.info.network["sha256"]) == 64
    assert (bundle.info.runtime, bundle.info.parity["images"]) == ("onnx", "validation images")
    assert bundle.info.parity["top1_agreement"] == 1
    recorded = json.loads((result.run / "run.json").read_text())["network"]
    assert recorded == {key: value for key, value in bundle.info.network.items() if key != "operations"}
    assert bundle.info.network["operations"] > 0
    assert from_yaml(vivace.Recipe, result.run / "recipe.yaml").model.name == "own/own_nets.py:Net"
    # what was measured in training is what its graph answers
    evaluation = vivace.evaluate(result.bundle, data, split="val")
    assert evaluation.metrics.top1 == result.val_top1
    assert abs(evaluation.metrics.nll - result.metrics["val"]["nll"]) < 1e-4
    with pytest.raises(BundleError, match=r"code is needed, and a bundle holds none: own_nets\.py:Net"):
        bundle.build_model()
    # the weights have the names of the user's class
    assert {"body.0.weight", "head.bias"} <= set(bundle_weights(result))
    again = vivace.load(result.bundle, model=functools.partial(Net))
    assert again.build_model()(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


def test_the_code_must_be_that_of_the_bundle(
    make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = nets_file(tmp_path)
    result = vivace.train(make_folder(), model=f"{path}:Net", **quick(tmp_path))
    capsys.readouterr()
    assert vivace.load(result.bundle, model=f"{path}:Net").has_code
    assert "changed" not in capsys.readouterr().err
    # a comment changes nothing
    path.write_text(path.read_text() + "# a note\n")
    assert vivace.load(result.bundle, model=f"{path}:Net").has_code
    assert "nets.py:Net was changed since it was trained; it still computes the same" in capsys.readouterr().err
    path.write_text(path.read_text().replace("ReLU", "Tanh"))
    with pytest.raises(BundleError, match=r"computes something else than the bundle: .*its source was changed since"):
        vivace.load(result.bundle, model=f"{path}:Net")
    with pytest.raises(BundleError, match=r"the weights do not fit own/nets\.py:Net"):
        vivace.load(result.bundle, model=Net)
    with pytest.raises(ConfigError, match="`model` is no code: got 'fast_cnn'"):
        vivace.load(result.bundle, model="fast_cnn")


def test_a_bundle_of_ours_takes_no_code(trained: tuple[vivace.Bundle, Path]) -> None:
    with pytest.raises(ConfigError, match="`model` would be ignored: got Net"):
        vivace.load(trained[0].folder, model=Net)


def test_without_a_graph_no_training_is_lost(
    make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_folder()
    result = vivace.train(data, model=Unexportable, **quick(tmp_path))
    assert result.no_graph is not None
    assert result.no_graph.startswith("onnx can't take this network")
    assert any("the bundle has no graph" in warning for warning in result.warnings)
    told = capsys.readouterr().err
    assert "the bundle has no graph" in told
    # torch's own page about it is left out
    assert "torch.ops.aten" not in told
    bundle = load_bundle(result.bundle)
    assert bundle.info.network["without_graph"] == result.no_graph
    assert bundle.info.runtime == "eager"
    with pytest.raises(BundleError, match="code is needed"):
        vivace.evaluate(result.bundle, data)
    coded = vivace.load(result.bundle, model=Unexportable)
    evaluation = vivace.evaluate(coded, data, split="val")
    assert evaluation.metrics.top1 == result.val_top1
    # from its weights another run begins
    more = vivace.train(data, model=Unexportable, weights=result.bundle, **quick(tmp_path, "more"))
    assert more.bundle.is_dir()


def test_an_instance_starts_with_its_weights(
    make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instance = Net(3)
    before = {name: tensor.clone() for name, tensor in instance.state_dict().items()}
    overrides = {"calibrate": False, "loss.self_distillation": 0.0}
    result = vivace.train(
        make_folder(), model=instance, **quick(tmp_path, optimizer="sgd", lr=1e-8, overrides=overrides)
    )
    assert "a copy of the instance, with its weights" in capsys.readouterr().err
    # the owner's is as it was, and the trained one is near it
    for name, tensor in instance.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.allclose(bundle_weights(result)["head.weight"], before["head.weight"], atol=1e-4)
    assert load_bundle(result.bundle).info.starting_weights == {"kind": "instance"}


def test_a_killed_run_of_ones_own_network_ends_as_the_unbroken_one(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder()
    unbroken = vivace.train(data, "accurate", model=Noisy, **quick(tmp_path, "unbroken"))
    with monkeypatch.context() as patch:
        die_after(patch, 5)
        with pytest.raises(Killed):
            vivace.train(data, "accurate", model=Noisy, **quick(tmp_path, "killed"))
    where: dict[str, Any] = {"run": tmp_path / "killed", "cache_dir": tmp_path / "cache", "resume": True}
    with pytest.raises(CheckpointError, match=r"trains a network of your own, .*own_nets\.py:Noisy\. Give it again"):
        vivace.train(data, **where)
    with pytest.raises(CheckpointError, match=r"began with own_nets\.py:Noisy, got own_nets\.py:Net\."):
        vivace.train(data, model=Net, **where)
    assert_same_weights(unbroken, vivace.train(data, model=Noisy, **where))


def test_a_run_of_our_network_is_not_resumed_with_ones_own(make_folder: MakeFolder, tmp_path: Path) -> None:
    data = make_folder()
    vivace.train(data, **quick(tmp_path))
    with pytest.raises(CheckpointError, match=r"began with fast_cnn, got own_nets\.py:Net\."):
        vivace.train(data, model=Net, resume=True, run=tmp_path / "run", cache_dir=tmp_path / "cache", epochs=3)


def test_a_run_is_not_resumed_with_other_code(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = make_folder(), nets_file(tmp_path)
    with monkeypatch.context() as patch:
        die_after(patch, 5)
        with pytest.raises(Killed):
            vivace.train(data, model=f"{path}:Net", **quick(tmp_path))
    where: dict[str, Any] = {"run": tmp_path / "run", "cache_dir": tmp_path / "cache", "resume": True}
    moved = tmp_path / "moved"
    moved.mkdir()
    text = path.read_text()
    path.write_text(text.replace("ReLU", "Tanh"))
    with pytest.raises(CheckpointError, match=r"source of the network was changed since the run began: nets\.py:Net"):
        vivace.train(data, model=f"{path}:Net", **where)
    # the same file may lie elsewhere by now
    (moved / "nets.py").write_text(text)
    assert vivace.train(data, model=f"{moved / 'nets.py'}:Net", **where).epochs == 2


def test_only_what_is_passed_is_run(make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, evil = make_folder(), tmp_path / "evil.py"
    evil.write_text("from pathlib import Path\nPath('evil was run').touch()\n")
    monkeypatch.chdir(tmp_path)
    for name in ("own/evil.py:Net", f"{evil}:Net", "evil.py:Net", "own/../evil.py:Net"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"name: evil\nmodel: {{name: '{name}'}}\n")
        with pytest.raises((ModelError, ConfigError)):
            vivace.train(data, recipe, **quick(tmp_path))
        with pytest.raises((ModelError, ConfigError)):
            vivace.train(data, **quick(tmp_path, overrides={"model.name": name}))
    assert not (tmp_path / "evil was run").exists()
    assert not (tmp_path / "run").exists()


def test_with_ones_own_network_a_recipe_leaves_its_parts_alone() -> None:
    fast = with_implied(resolve_recipe("fast", MANY), {"model.name": "own/nets.py:Net"})
    assert (fast["freeze_after"], fast["augment.start_size"], fast["model.arguments"]) == ((), None, {})
    assert (fast["optimizer.name"], fast["optimizer.options"]) == ("muon", {"aux": "adamw"})
    tuned = with_implied(resolve_recipe("finetune", MANY), {"model.name": "own/nets.py:Net", "model.weights": "x"})
    assert (tuned["finetune.head"], tuned["model.pretrained"], tuned["optimizer.layer_decay"]) == (False, False, None)
    assert tuned["epochs"] >= 8


def test_published_weights_do_not_go_with_ones_own_network(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.pretrained can't go with a network of your own"):
        vivace.train(make_folder(), model=Net, pretrained=True, **quick(tmp_path))


def test_what_the_network_raises_in_training_is_said_with_its_place(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"failed while it was trained: own_nets\.py:Failing, own_nets\.py:\d+: Runtime"
    ):
        vivace.train(make_folder(), model=Failing, **quick(tmp_path))


def test_a_run_starts_from_another_one_of_the_same_network(make_folder: MakeFolder, tmp_path: Path) -> None:
    data = make_folder()
    first = vivace.train(data, model=Net, **quick(tmp_path, "first", overrides={"model.arguments": {"width": 6}}))
    with pytest.raises(ModelError, match="whose code a recipe does not hold: got 'own/own_nets"):
        vivace.train(data, start_from=first.run, **quick(tmp_path, "second", size=None))
    second = vivace.train(data, model=Net, start_from=first.run, **quick(tmp_path, "second", size=None))
    info = load_bundle(second.bundle).info
    assert (info.starting_weights["kind"], info.starting_weights["classes"]) == ("run", "3 classes kept")
    assert (info.architecture.arguments, info.preprocess.size) == ({"width": 6}, 16)
    with pytest.raises(ConfigError, match="`start_from` can't go with `model`"):
        vivace.train(data, model="fast_cnn", start_from=first.run, **quick(tmp_path, "third", size=None))
