"""Winograd's convolutions: the exact ones within the rounding of their transforms, only where they gain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from whole_numbers import num_threads, whole_numbers

from vivace.errors import KernelError
from vivace.hardware import cpu_features
from vivace.kernels import winograd as winograd_module
from vivace.kernels.build import load_library
from vivace.kernels.winograd import PoolIndices, Tiles, Winograd, has_winograd, is_faster, tile_map, winograd

# root mean square of the error over that of the result, as the docstring of Winograd states it, with room for chance
MAX_ERROR = {2: 0.006, 4: 0.016}


@pytest.fixture
def kernel(kernels: Path) -> Winograd:
    if "avx512_bf16" not in cpu_features():
        pytest.skip("this processor has no bf16 dot products (avx512_bf16)")
    return Winograd(kernels)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def exact(x: Tensor, weight: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the gradient of x and that of the weights, float64."""
    x, weight, g = x.double(), weight.double(), g.double()
    return (
        torch.nn.functional.conv2d(x, weight, padding=1),
        torch.nn.grad.conv2d_input(x.shape, weight, g, padding=1),
        torch.nn.grad.conv2d_weight(x, weight.shape, g, padding=1),
    )


def by_kernel(
    kernel: Winograd, x: Tensor, weight: Tensor, g: Tensor, tiles: tuple[Tiles, ...] | None
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        kernel.convolve(x, weight, tiles=tiles),
        kernel.input_gradient(g, weight, tiles=tiles),
        kernel.weight_gradient(x, g, tiles=tiles),
    )


def equal_tiles(m: int, height: int, width: int) -> tuple[Tiles, ...]:
    return (Tiles(m, m, 0, 0, -(-height // m), -(-width // m)),)


# one pixel, uneven sides, sides for tiles of both sizes; channels that are odd or fill no vector, in blocks of 1 to 4;
# more tiles than a block holds
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 7, 5, 4, 9),
    (5, 24, 30, 30, 64),
    (33, 64, 15, 15, 48),
    (20, 80, 7, 7, 96),
    (9, 33, 3, 3, 17),
    (5, 40, 1, 9, 48),
    (2, 16, 11, 2, 130),
]


@pytest.mark.parametrize(("count", "channels", "height", "width", "filters"), SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_tiles_of_two_are_exact_where_nothing_is_rounded(
    kernel: Winograd, count: int, channels: int, height: int, width: int, filters: int, threads: int
) -> None:
    x, g = whole_numbers(count, channels, height, width), whole_numbers(count, filters, height, width, seed=1)
    weight = whole_numbers(filters, channels, 3, 3, seed=2, dtype=torch.float32)
    with num_threads(threads):
        found = by_kernel(kernel, x, weight, g, equal_tiles(2, height, width))
    out, x_grad, weight_grad = exact(x, weight, g)
    assert torch.equal(found[0], out.bfloat16())
    assert torch.equal(found[1], x_grad.bfloat16())
    assert torch.equal(found[2].double(), weight_grad)


@pytest.mark.parametrize(("count", "channels", "height", "width", "filters"), SHAPES)
@pytest.mark.parametrize("m", [2, 4, None])
def test_the_error_is_what_the_docstring_says_at_each_pixel_and_for_each_tap(
    kernel: Winograd, count: int, channels: int, height: int, width: int, filters: int, m: int | None
) -> None:
    x, g = normal(count, channels, height, width), normal(count, filters, height, width, seed=1)
    weight = normal(filters, channels, 3, 3, seed=2, dtype=torch.float32)
    # None: those that the kernels take by themselves, of both sizes where that is faster
    tiles = equal_tiles(m, height, width) if m else None
    limit = MAX_ERROR[m or 4]
    for found, wanted in zip(by_kernel(kernel, x, weight, g, tiles), exact(x, weight, g), strict=True):
        error, scale = (found.double() - wanted), wanted.square().mean().sqrt()
        assert float(error.square().mean().sqrt() / scale) < limit
        # a pixel or tap that is wrong would hide in the mean
        assert float(error.abs().max() / scale) < 12 * limit


def spread(g: Tensor, maxima: PoolIndices) -> Tensor:
    """[B, K, H, W]: the gradient of all outputs from that of their maxima."""
    argmax = maxima.argmax.permute(0, 3, 1, 2)
    out = torch.zeros(*g.shape[:2], maxima.height, maxima.width, dtype=g.dtype)
    for corner in range(4):
        rows, columns = 2 * g.shape[2], 2 * g.shape[3]
        out[:, :, corner // 2 : rows : 2, corner % 2 : columns : 2] = g * (argmax == corner)
    return out


POOLED_SHAPES = [shape for shape in SHAPES if min(shape[2:4]) >= 2] + [(30, 24, 14, 15, 33), (2, 16, 2, 2, 16)]


@pytest.mark.parametrize(("count", "channels", "height", "width", "filters"), POOLED_SHAPES)
@pytest.mark.parametrize("threads", [1, 5])
def test_maxima_and_their_gradients_are_exact_where_nothing_is_rounded(
    kernel: Winograd, count: int, channels: int, height: int, width: int, filters: int, threads: int
) -> None:
    x, g = whole_numbers(count, channels, height, width), whole_numbers(count, filters, height // 2, width // 2, seed=1)
    weight = whole_numbers(filters, channels, 3, 3, seed=2, dtype=torch.float32)
    outputs, all_outputs = (equal_tiles(2, *sides) for sides in ((height // 2 * 2, width // 2 * 2), (height, width)))
    with num_threads(threads):
        found, maxima = kernel.convolve_and_pool(x, weight, tiles=outputs)
        x_found = kernel.input_gradient(g, weight, pooled=maxima, tiles=all_outputs)
        weight_found = kernel.weight_gradient(x, g, pooled=maxima, tiles=outputs)
    out, x_grad, weight_grad = exact(x, weight, spread(g, maxima))
    wanted, places = torch.nn.functional.max_pool2d(out, 2, return_indices=True)
    assert torch.equal(found, wanted.bfloat16())
    # of equal ones the first, as torch has it
    corners = 2 * (places // width % 2) + places % width % 2
    assert torch.equal(maxima.argmax.permute(0, 3, 1, 2), corners.to(torch.uint8))
    assert torch.equal(x_found, x_grad.bfloat16())
    assert torch.equal(weight_found.double(), weight_grad)


@pytest.mark.parametrize(("count", "channels", "height", "width", "filters"), POOLED_SHAPES)
@pytest.mark.parametrize("m", [4, None])
def test_maxima_have_the_error_of_the_outputs(
    kernel: Winograd, count: int, channels: int, height: int, width: int, filters: int, m: int | None
) -> None:
    x, g = normal(count, channels, height, width), normal(count, filters, height // 2, width // 2, seed=1)
    weight = normal(filters, channels, 3, 3, seed=2, dtype=torch.float32)
    tiles = equal_tiles(m, height, width) if m else None
    values, maxima = kernel.convolve_and_pool(x, weight, tiles=tiles)
    found = (
        values,
        kernel.input_gradient(g, weight, pooled=maxima, tiles=tiles),
        kernel.weight_gradient(x, g, pooled=maxima, tiles=tiles),
    )
    out, *gradients = exact(x, weight, spread(g, maxima))
    for one, wanted in zip(found, (torch.nn.functional.max_pool2d(out, 2), *gradients), strict=True):
        error, scale = (one.double() - wanted), wanted.square().mean().sqrt()
        assert float(error.square().mean().sqrt() / scale) < MAX_ERROR[4]
        assert float(error.abs().max() / scale) < 12 * MAX_ERROR[4]
    # where another one of the four is taken than the exact one, it is nearly as large
    taken = out * spread(torch.ones_like(values), maxima)
    at_which = 4 * torch.nn.functional.avg_pool2d(taken, 2)
    short = (torch.nn.functional.max_pool2d(out, 2) - at_which).max() / out.square().mean().sqrt()
    assert float(short) < 24 * MAX_ERROR[4]


def test_they_are_the_same_from_call_to_call_and_for_any_order_of_memory(kernel: Winograd) -> None:
    x, g = normal(40, 32, 15, 15), normal(40, 48, 15, 15, seed=1)
    weight = normal(48, 32, 3, 3, seed=2, dtype=torch.float32)
    found = by_kernel(kernel, x, weight, g, None)
    again = by_kernel(kernel, x.contiguous(), weight.contiguous(), g.contiguous(), None)
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == (torch.float32 if one is found[2] else torch.bfloat16)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_weights_in_bf16_will_do(kernel: Winograd) -> None:
    x, weight = normal(4, 16, 8, 8), normal(16, 16, 3, 3, seed=2)
    assert torch.equal(kernel.convolve(x, weight), kernel.convolve(x, weight.float()))


def test_a_nan_stays_one(kernel: Winograd) -> None:
    x, weight = normal(4, 16, 8, 8), normal(16, 16, 3, 3, seed=2, dtype=torch.float32)
    x[2, 5, 3, 3] = float("nan")
    out = kernel.convolve(x, weight)
    assert out[2, :, 2:5, 2:5].isnan().all()
    assert out[torch.arange(4) != 2].isfinite().all()
    pooled, _ = kernel.convolve_and_pool(x, weight)
    assert pooled[2, :, 1:3, 1:3].isnan().all()
    gradient = kernel.weight_gradient(x, normal(4, 16, 8, 8, seed=1))
    assert gradient[:, 5].isnan().all()
    assert gradient[:, torch.arange(16) != 5].isfinite().all()


@pytest.mark.parametrize(
    ("height", "width", "count", "kinds"),
    [
        (2, 2, 1000, {(2, 2): 1}),
        (3, 3, 1000, {(4, 4): 1}),
        (4, 4, 1000, {(4, 4): 1}),
        (5, 6, 1000, {(4, 4): 1, (4, 2): 1, (2, 4): 1, (2, 2): 1}),
        # few maps: each kind of tile has weights of its own to transform
        (6, 6, 10, {(2, 2): 9}),
        (7, 7, 1000, {(4, 4): 4}),
        (15, 15, 1000, {(4, 4): 16}),
        (1, 9, 1000, {(2, 4): 2, (2, 2): 1}),
        (10, 4, 1000, {(4, 4): 2, (2, 4): 1}),
    ],
)
def test_tiles_are_those_that_need_fewest_products(
    height: int, width: int, count: int, kinds: dict[tuple[int, int], int]
) -> None:
    assert {(part.tile_h, part.tile_w): part.down * part.across for part in tile_map(height, width, count)} == kinds


@pytest.mark.parametrize("height", range(1, 14))
@pytest.mark.parametrize("width", [1, 2, 7, 10])
@pytest.mark.parametrize("count", [1, 1000])
def test_tiles_cover_each_pixel_once(height: int, width: int, count: int) -> None:
    times = torch.zeros(height + 4, width + 4, dtype=torch.int64)
    for part in tile_map(height, width, count):
        bottom, right = part.top + part.down * part.tile_h, part.left + part.across * part.tile_w
        times[part.top : bottom, part.left : right] += 1
    assert times[:height, :width].eq(1).all()


@pytest.mark.parametrize(
    ("count", "channels", "side", "filters", "gain"),
    [
        (1000, 24, 30, 64, True),
        (1000, 256, 3, 256, True),
        (64, 48, 32, 48, True),
        (1000, 256, 1, 256, False),
        (1000, 3, 32, 24, False),
        (1000, 64, 30, 10, False),
        # as many weights to transform as products
        (8, 512, 4, 512, False),
        (0, 64, 30, 64, False),
    ],
)
def test_they_are_for_many_images_and_channels(count: int, channels: int, side: int, filters: int, gain: bool) -> None:
    assert is_faster(torch.empty(count, channels, side, side, device="meta"), filters) is gain


def test_they_are_for_cpus_that_have_the_dot_products_and_no_amx(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for features, wanted in (
        (("avx2",), False),
        (("avx512f", "avx512_bf16"), True),
        (("avx512_bf16", "amx_bf16"), False),
    ):
        monkeypatch.setattr(winograd_module, "cpu_features", lambda features=features: features)
        assert has_winograd() is wanted
        if not wanted:
            assert winograd(tmp_path / str(len(features))) is None
    assert not list(tmp_path.iterdir()), "nothing is built where it is not used"


def test_without_a_compiler_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd_module, "cpu_features", lambda: ("avx512_bf16",))

    def fail(name: str, folder: Path) -> None:
        raise KernelError("no C compiler was found")

    monkeypatch.setattr(winograd_module, "load_library", fail)
    assert winograd(tmp_path) is None


def test_the_library_says_whether_it_can_be_used(kernels: Path) -> None:
    assert bool(load_library("winograd", kernels).usable()) == ("avx512_bf16" in cpu_features())
