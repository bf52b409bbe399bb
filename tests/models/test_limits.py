"""What a network may cost for one image: bounded where nobody wants it, told where it is much."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vivace.errors import ModelError
from vivace.models.arguments import check_arguments
from vivace.models.limits import LARGE_TENSOR_BYTES, check_forward
from vivace.models.zoo import create_model
from vivace.trust import say_once


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("padding", 65),
        ("padding", 2000),
        ("padding", [3, 2000]),
        ("patch_padding", 2000),
        ("down_pad", 2000),
        ("downsample_padding", 2000),
        ("kernel_size", 257),
        ("kernel_sizes", [3, 65535]),
        ("stem_kernel_size", 4096),
    ],
)
def test_paddings_and_kernels_have_a_bound(argument: str, value: object) -> None:
    with pytest.raises(ModelError, match=rf"{argument} has an invalid value"):
        check_arguments({argument: value})
    check_arguments({argument: 31})


def test_a_bundle_with_a_wide_border_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ModelError, match=r"padding has an invalid value: got 2000"):
        create_model("fast_cnn", 10, padding=2000)


def warned(capsys: pytest.CaptureFixture[str], network: nn.Module, size: int) -> str:
    say_once.cache_clear()
    with torch.device("meta"):
        check_forward("a network", network.to("meta"), 3, size)
    return capsys.readouterr().err


def test_a_network_that_takes_gigabytes_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    side = 1024
    channels = LARGE_TENSOR_BYTES // (4 * side * side)
    assert warned(capsys, nn.Conv2d(3, channels, 1), side) == ""
    assert warned(capsys, nn.Conv2d(3, channels + 1, 1), side) == (
        "warning: a network takes much memory: its largest tensor has 0.5 GiB for each image of 1024 px, and there are "
        "others beside it. A network for smaller images (`size`) takes less.\n"
    )


@pytest.mark.parametrize(
    ("name", "size"), [("timm/vit_large_patch14_dinov2", 518), ("timm/resnet152", 1024), ("fast_photo", 1024)]
)
def test_large_networks_that_people_use_load_without_a_word(
    name: str, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(Exception):
        pass

    def stop(blank: nn.Module) -> None:
        assert warned(capsys, blank, size) == ""
        raise Stop

    arguments: dict[str, Any] = {"size": size, "in_channels": 3}
    with pytest.raises(Stop):
        create_model(name, 10, inspect_blank=stop, **arguments)
