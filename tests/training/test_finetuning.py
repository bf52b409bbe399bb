"""Fine-tuning in stages: the head is solved on features of the frozen network; epochs follow if asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vivace
from vivace.bundle import load_bundle
from vivace.errors import ConfigError
from vivace.models import frozen
from vivace.models.frozen import Frozen
from vivace.models.normalize import Normalize
from vivace.models.zoo import create_model
from vivace.training.recipes.named import PACKAGED_NETWORK, DataFacts, auto, reason, starts_from_weights

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


def test_the_head_is_solved_and_the_body_stays(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run")
    assert result.epochs == 0
    assert result.val_top1 == 1.0
    # it and its mirror image
    assert result.num_images_seen == 2 * 33
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (record["epochs"], record["num_images_seen"]) == (0, 66)
    info = load_bundle(result.bundle).info
    assert info.recipe["finetune"] == {"head": True, "views": 2}
    start = create_model(PACKAGED_NETWORK, 1000, size=SIZE, pretrained=True).state_dict()
    found = load_bundle(result.bundle).build_model().state_dict()
    changed = {
        name for name, tensor in found.items() if tensor.shape != start[name].shape or (tensor != start[name]).any()
    }
    assert changed == {"classifier.weight", "classifier.bias"}
    # what the features said of the validation images is what the bundle says of them
    assert vivace.evaluate(result.bundle, data, split="val").metrics.top1 == result.val_top1


def test_epochs_that_are_asked_for_train_the_whole_network(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", epochs=1, tune=False, lr=1e-5, batch_size=11)
    assert result.epochs == 1
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1"]


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


def test_a_finished_run_goes_on_with_the_whole_network(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run")
    result = vivace.train(data, run=tmp_path / "run", resume=True, epochs=1, tune=False, quiet=True)
    assert result.epochs == 1


def test_options_of_epochs_are_said_to_be_unused(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", lr=0.1)
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


class TestFrozen:
    @pytest.fixture
    def parts(self) -> tuple[torch.nn.Module, Normalize, np.ndarray]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )
        images = np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3)).astype(np.uint8)
        return network, Normalize((0.5,) * 3, (0.25,) * 3), images

    @pytest.mark.parametrize("library", [True, False])
    def test_its_answers_are_torchs(
        self,
        parts: tuple[torch.nn.Module, Normalize, np.ndarray],
        library: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        network, normalize, images = parts
        if not library:
            monkeypatch.setattr(Frozen, "_in_library", lambda *_: None)
        computed = Frozen(network, normalize, sample=images, device=torch.device("cpu"), cache_dir=tmp_path)
        assert computed.runtime == ("openvino" if library else "torch")
        # blocks that are no whole number of batches
        found = computed(iter([images[:13], images[13:]]), len(images))
        expected = network(normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
        # bf16 has 8 bits
        assert torch.allclose(found, expected, atol=0.03, rtol=0.02)

    def test_a_graph_is_kept_and_one_that_was_changed_is_made_again(
        self, parts: tuple[torch.nn.Module, Normalize, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network, normalize, images = parts
        made: list[int] = []
        convert = frozen._converted

        def counted(*arguments: Any) -> Any:
            made.append(1)
            return convert(*arguments)

        monkeypatch.setattr(frozen, "_converted", counted)

        def answers() -> torch.Tensor:
            computed = Frozen(network, normalize, sample=images, device=torch.device("cpu"), cache_dir=tmp_path)
            return computed(iter([images]), len(images))

        first = answers()
        assert torch.equal(answers(), first)
        assert len(made) == 1
        (weights,) = (tmp_path / "graphs").rglob("*.bin")
        weights.write_bytes(bytes(len(weights.read_bytes())))
        assert torch.equal(answers(), first)
        assert len(made) == 2

    def test_a_library_that_answers_otherwise_is_not_used(
        self, parts: tuple[torch.nn.Module, Normalize, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network, normalize, images = parts
        other = torch.nn.Sequential(*network[:-2], torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten())
        convert = frozen._converted
        monkeypatch.setattr(
            frozen,
            "_converted",
            lambda library, module, sample: convert(library, frozen._OnPixels(other, normalize), sample),
        )
        computed = Frozen(network, normalize, sample=images, device=torch.device("cpu"), cache_dir=tmp_path)
        assert computed.runtime == "torch"
