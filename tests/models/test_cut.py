"""A network cut in two: the parts together answer as the whole, and share its weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vivace.models.cut import LARGEST_BACK, SMALLEST_BACK, back_of, find_cut, front_of
from vivace.models.zoo import create_model

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name",
    ["timm/tf_efficientnet_lite0", "timm/resnet18", "timm/mobilenetv3_small_050", "timm/repvgg_a0", "fast_photo"],
)
def test_both_parts_together_answer_as_the_whole(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 4, size=64).eval()
    cut = find_cut(model, IMAGES)
    assert cut is not None
    assert SMALLEST_BACK <= cut.fraction <= LARGEST_BACK
    maps = front_of(model, cut)(IMAGES)
    assert tuple(maps.shape[1:]) == cut.shape
    torch.testing.assert_close(back_of(model, cut)(maps), model(IMAGES))


def test_the_parts_have_the_weights_of_the_network_and_their_names() -> None:
    model = create_model("timm/resnet18", 4, size=64).eval()
    cut = find_cut(model, IMAGES)
    assert cut is not None
    back, whole = back_of(model, cut), dict(model.named_parameters())
    names = [name for name, _ in back.named_parameters()]
    assert "fc.weight" in names
    assert "conv1.weight" not in names
    assert all(parameter is whole[name] for name, parameter in back.named_parameters())
    # the network itself is as it was
    assert isinstance(model.conv1, nn.Conv2d)


def test_a_network_that_adds_something_in_between_is_not_cut() -> None:
    # a vision transformer adds positions to what its first layer gives
    model = create_model("timm/vit_tiny_patch16_224", 4, size=64).eval()
    assert find_cut(model, IMAGES) is None


class Small(nn.Module):
    """Flattens by a function, as torchvision's networks do; `between` is applied by a function too."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 3, 2, 1)
        self.pool, self.head, self.between = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 4), between

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        maps = self.pool(self.second(self.between(self.first(images_BCHW))))
        logits: torch.Tensor = self.head(torch.flatten(maps, 1))
        return logits


def test_maps_that_a_network_flattens_keep_their_shape() -> None:
    # done by both parts, which is harmless where doing it twice changes nothing
    model = Small(torch.relu).eval()
    cut = find_cut(model, IMAGES, after="first")
    assert cut is not None
    assert front_of(model, cut)(IMAGES).shape == (2, 8, 32, 32)


def test_parts_that_would_do_something_twice_are_refused() -> None:
    model = Small(lambda maps: 2 * maps).eval()
    assert find_cut(model, IMAGES, after="first") is None


def test_a_cut_is_where_it_is_asked_for_and_small_enough() -> None:
    model = create_model("timm/resnet18", 4, size=64).train()
    cut = find_cut(model, IMAGES, after="layer3.1")
    assert cut is not None
    assert (cut.name, cut.num_values) == ("layer3.1", 256 * 4 * 4)
    assert find_cut(model, IMAGES, after="layer3.1", max_values=256 * 4 * 4 - 1) is None
    assert find_cut(model, IMAGES, after="no such module") is None
    assert model.training
    assert model.layer1.training
