"""Weight gradients from tiles: the same sums as torch's own, for any network, only where they are faster."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vivace.kernels import tiling
from vivace.kernels.tiling import TiledGradients, tile_images
from vivace.models.zoo import create_model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all tiles that are made."""
    shapes: list[tuple[int, ...]] = []
    plain = tiling.tile_images

    def spy(x_BCHW: Tensor) -> Tensor:
        tiles = plain(x_BCHW)
        shapes.append(tuple(tiles.shape))
        return tiles

    monkeypatch.setattr(tiling, "tile_images", spy)
    return shapes


def channels_last(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def test_tiles_hold_the_images_side_by_side_with_a_column_of_zeros_behind_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "TILE_COLUMNS", 8)
    x = channels_last(5, 2, 3, 3, dtype=torch.float32)
    tiles = tile_images(x)
    assert tiles.shape == (3, 2, 3, 8)
    assert tiles.is_contiguous(memory_format=torch.channels_last)
    for index in range(5):
        start = 4 * (index % 2)
        assert torch.equal(tiles[index // 2, :, :, start : start + 3], x[index])
        assert not tiles[index // 2, :, :, start + 3].any()
    # the place of a sixth image is empty
    assert not tiles[2, :, :, 4:].any()


@pytest.mark.parametrize(
    ("count", "side", "channels", "width"), [(64, 2, 16, 8), (50, 4, 8, 24), (7, 8, 3, 5), (1, 3, 4, 4)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_the_plain_convolution(
    calls: list[tuple[int, ...]], count: int, side: int, channels: int, width: int, bias: bool
) -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
    x = channels_last(count, channels, side, side)
    outer = channels_last(count, width, side, side, seed=2)

    def gradients(tiled: bool) -> list[Tensor]:
        x.grad = None
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if tiled:
                with TiledGradients():
                    out = conv(x.requires_grad_())
            else:
                out = conv(x.requires_grad_())
        assert out.dtype == torch.bfloat16
        out.backward(outer)
        assert x.grad is not None
        return [out.detach(), x.grad.clone(), *(p.grad.clone() for p in conv.parameters() if p.grad is not None)]

    plain = gradients(False)
    assert not calls
    tiled = gradients(True)
    assert len(calls) == 2
    assert len(plain) == len(tiled) == 3 + bias
    for mine, theirs in zip(tiled, plain, strict=True):
        # bf16 keeps 8 bits: sums in another order differ in the last one or two
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))


def test_the_sum_itself_is_exact_where_rounding_is_not_in_the_way() -> None:
    # small whole numbers: every partial sum is exact in fp32 accumulation and in bf16 at the end
    x = torch.randint(-1, 2, (40, 4, 4, 4)).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    g = torch.randint(-1, 2, (40, 6, 4, 4)).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(6, 4, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    with TiledGradients():
        torch.nn.functional.conv2d(x, weight, None, 1, 1, 1, 1).backward(g)
    exact = torch.nn.grad.conv2d_weight(x.double(), (6, 4, 3, 3), g.double(), padding=1)
    assert weight.grad is not None
    assert torch.equal(weight.grad, exact.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("conv", "side"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), 16),
        (nn.Conv2d(4, 4, 3, padding=1, stride=2), 8),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), 8),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), 8),
        (nn.Conv2d(4, 4, 3), 8),
        (nn.Conv2d(4, 4, 1), 8),
        (nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False), 8),
    ],
    ids=["large", "strided", "dilated", "grouped", "unpadded", "1x1", "frozen"],
)
def test_other_convolutions_are_left_alone(calls: list[tuple[int, ...]], conv: nn.Conv2d, side: int) -> None:
    with TiledGradients(), torch.autocast("cpu", torch.bfloat16):
        conv(channels_last(4, 4, side, side).requires_grad_()).sum().backward()
    assert not calls


def test_fp32_is_left_alone(calls: list[tuple[int, ...]]) -> None:
    with TiledGradients():
        nn.Conv2d(4, 4, 3, padding=1)(channels_last(4, 4, 4, 4, dtype=torch.float32)).sum().backward()
    assert not calls


def test_a_network_of_timm_gets_them_too(calls: list[tuple[int, ...]]) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    model = create_model("timm/resnet18", 3, in_channels=3, size=64)
    model.eval()
    x = channels_last(4, 3, 64, 64, dtype=torch.float32)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(x).float().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    with torch.autocast("cpu", torch.bfloat16):
        plain = gradients()
        with TiledGradients():
            tiled = gradients()
    # two of the input and the gradient for each convolution of the last two stages that is not strided
    assert len(calls) >= 8
    for mine, theirs in zip(tiled, plain, strict=True):
        assert float((mine - theirs).norm()) <= 0.02 * float(theirs.norm()) + 1e-6
