"""Narrowed networks: the sizes that pruning left build the same network again, and nothing else is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vivace.bundle import Architecture, BundleInfo, load_bundle, save_bundle
from vivace.data.preprocess import Preprocess
from vivace.errors import ModelError
from vivace.models.narrowing import layer_sizes, narrow, narrowed_layers
from vivace.models.zoo import create_model

# the inner channels of one residual block of resnet18
INNER = {"layer1.0.conv1": [24, 64, 1], "layer1.0.bn1": [24], "layer1.0.conv2": [64, 24, 1]}


def test_layers_take_their_new_sizes_and_the_network_still_computes() -> None:
    model = create_model("timm/resnet18", 5, size=64, narrowed=INNER)
    assert model.get_parameter("layer1.0.conv1.weight").shape == (24, 64, 3, 3)
    assert model.get_buffer("layer1.0.bn1.running_var").shape == (24,)
    assert narrowed_layers(model, create_model("timm/resnet18", 5, size=64)) == INNER
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_a_depthwise_convolution_has_as_many_groups_as_channels() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.LayerNorm(4), nn.Linear(4, 2))
    narrow(model, {"0": [6, 6, 6], "1": [3], "2": [2, 3]})
    assert model[0].weight.shape == (6, 1, 3, 3)
    assert layer_sizes(model[0]) == (6, 6, 6)
    assert model[1](torch.zeros(1, 3)).shape == (1, 3)
    assert model[2](torch.zeros(1, 3)).shape == (1, 2)


def test_a_frozen_weight_stays_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm2d(8))
    model[0].weight.requires_grad_(False)
    narrow(model, {"0": [4]})
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ({"layer1.0.conv9": [24, 64, 1]}, "lacks: got 'layer1.0.conv9'. Did you mean 'layer1.0.conv"),
        ({"layer1.0.act1": [24]}, "lacks: got 'layer1.0.act1'"),
        ({"layer1.0.conv1": [24, 64]}, r"invalid sizes: got \[24, 64\], the layer has \[64, 64, 1\]"),
        ({"layer1.0.conv1": [0, 64, 1]}, "each size 1 to 65536"),
        ({"layer1.0.conv1": [24, 64, 5]}, "invalid sizes"),
        ({"layer1.0.conv1": [24, 64, 1]}, "does not work with these narrowed sizes at"),
    ],
)
def test_other_sizes_are_refused(layers: dict[str, list[int]], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        create_model("timm/resnet18", 5, size=64, narrowed=layers)


def test_a_bundle_carries_a_narrowed_network_as_names_and_numbers(tmp_path: Path) -> None:
    model = create_model("timm/resnet18", 2, size=32, narrowed=INNER).eval()
    architecture = Architecture(name="timm/resnet18", num_classes=2, size=32, arguments={"narrowed": INNER})
    info = BundleInfo(
        architecture=architecture,
        classes=("a", "b"),
        preprocess=Preprocess(size=32, store_size=32, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    save_bundle(tmp_path / "bundle", model, info)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_bundle(tmp_path / "bundle").build_model()(images), model(images))
