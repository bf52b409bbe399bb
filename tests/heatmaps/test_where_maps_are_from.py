"""A heat map is of the last layer that keeps places, in networks of any make, and finding it changes no answer."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from vivace.errors import ModelError
from vivace.heatmaps.layers import Layer, find_layer, replaced_output
from vivace.models.zoo import create_model

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Reused(nn.Module):
    """One activation for all, in place, as torchvision's residual blocks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.norm, self.relu, self.head = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        y = self.norm(self.second(x))
        y += x
        logits: Tensor = self.head(self.relu(y).mean((2, 3)))
        return logits


class ChannelsLast(nn.Module):
    """A map [B, H, W, C], as Swin has it, and an attention matrix that is as square."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8)
        self.softmax, self.head = nn.Softmax(-1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).permute(0, 2, 3, 1))
        weights = self.softmax(torch.einsum("bhwc,bhvc->bhwv", x, x))
        logits: Tensor = self.head((weights @ x).mean((1, 2)))
        return logits


def vit(**options: object) -> nn.Module:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **shape, **options)
    return model


NETWORKS = {
    "ours": (lambda: create_model("fast_cnn", 3, size=32, widths=[8, 8], depth=1), Layer("groups.1.3", 0, "maps", 8)),
    "in place, again": (Reused, Layer("relu", 1, "maps", 16)),
    "channels last": (ChannelsLast, Layer("norm", 0, "last", 4)),
    # of 2 × 2 places in the last stage, 4 × 4 in the one before
    "too small at the end": (
        lambda: torchvision.models.resnet18(num_classes=3),
        Layer("layer2.1.relu", 1, "maps", 4),
    ),
    # the last block hands the class token on: the patches are asked by its attention
    "a class token": (vit, Layer("blocks.1.attn.qkv", 0, "tokens", 4)),
    "no class token": (lambda: vit(class_token=False, global_pool="avg"), Layer("blocks.1", 0, "tokens", 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_layer_that_keeps_places_is_found(name: str) -> None:
    torch.manual_seed(0)
    make, expected = NETWORKS[name]
    model = make().eval().requires_grad_(False)
    layer = find_layer(model, IMAGES)
    assert (layer.kind, layer.side) == (expected.kind, expected.side)
    assert (layer.name, layer.call) == (expected.name, expected.call)
    with torch.no_grad(), replaced_output(model, layer) as kept:
        replaced = model(IMAGES)
    assert torch.equal(replaced, model(IMAGES))
    assert layer.grid(kept[0]).shape[2:] == (layer.side, layer.side)
    # nothing is left behind
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_tokens_of_patches_are_laid_out_row_by_row_without_the_class_token() -> None:
    tokens_BTD = torch.arange(17.0).view(1, 17, 1)
    grid = Layer("x", 0, "tokens", 4).grid(tokens_BTD)
    assert grid[0, 0].tolist() == torch.arange(1.0, 17).view(4, 4).tolist()


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 3)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)),
    ],
    ids=["no map", "one place"],
)
def test_a_network_without_places_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="no layer of the network keeps the places"):
        find_layer(model.eval(), IMAGES)
