"""3×3 convolutions with 25–50 % of the multiplications, on a CPU with the bf16 dot products of AVX-512.

Winograd's minimal filtering (arXiv:1509.09308): a tile of m × m outputs comes from (m + 2)² products for each pair of
channels in the place of 9 m². Shapes: x_BCHW the input of a convolution, g_BKHW the gradient of its output, both bf16;
weight [K, C, 3, 3] float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vivace.errors import KernelError
from vivace.hardware import cpu_features
from vivace.kernels.build import load_library, say_unused
from vivace.kernels.call import Address, Kernel

__all__ = ["PoolIndices", "Tiles", "Winograd", "has_winograd", "is_faster", "tile_map", "winograd"]

# below these the transforms of tiles or weights take longer than the products
MIN_CHANNELS = 16
MIN_PIXELS_PER_CHANNEL = 4
# 2 × 2: on a single pixel there is nothing to share
MIN_SIDE = 2
# fixed cost of each kind of tile, in tiles: transforming weights or collecting their sums
TILES_PER_KIND = 150
# of weight (k, c, i, j), as winograd.c names them
STRIDES = ("sk", "sc", "si", "sj")


@dataclass(frozen=True)
class Tiles:
    """A part of a map: `down` by `across` tiles of tile_h × tile_w outputs, each 2 or 4, from (top, left) on."""

    tile_h: int
    tile_w: int
    top: int
    left: int
    down: int
    across: int


@dataclass(frozen=True)
class PoolIndices:
    """Which of its four pixels each 2×2 maximum of maps of height × width was.

    argmax: uint8 [B, H // 2, W // 2, K], 0 to 3, row by row. An odd last row or column has no maximum.
    """

    argmax: Tensor
    height: int
    width: int


class Winograd:
    """The kernels, for stride 1 and padding 1. Their outputs are channels_last.

    Both sides of each product are rounded to bf16 after their transform, sums are taken in float32. Against the exact
    result of normal values the error is 0.4 % in root mean square with tiles of 2 × 2, and 1.2 % with 4 × 4, where
    convolutions in bf16 have 0.2 %. tiles: those that cover the map; None: `tile_map`. pooled: the gradient is that of
    2×2 maxima [B, K, H // 2, W // 2], and zero for all other outputs.
    """

    def __init__(self, folder: Path) -> None:
        """Raises KernelError where they can't be built, or the processor does not have what they need."""
        convolutions, gradients = load_library("winograd", folder), load_library("winograd_gradients", folder)
        if not convolutions.usable():
            raise KernelError("this processor has no bf16 dot products: avx512_bf16 is missing. Set winograd=false.")
        sizes = "tile_h tile_w top left down across N H W C K"
        self._convolve = Kernel(
            convolutions, "convolve", pointers="x x_argmax weights out out_argmax", sizes=f"{sizes} sk sc si sj"
        )
        self._weight_gradient = Kernel(gradients, "weight_gradient", pointers="x g g_argmax out", sizes=sizes)

    def convolve(self, x_BCHW: Tensor, weight: Tensor, *, tiles: Sequence[Tiles] | None = None) -> Tensor:
        """bf16 [B, K, H, W]: the convolution."""
        sides = _sides(x_BCHW)
        out = _empty(len(x_BCHW), len(weight), *sides)
        self._run(x_BCHW, None, _straight(weight), out, None, tiles or tile_map(*sides, len(x_BCHW)), sides)
        return out

    def convolve_and_pool(
        self, x_BCHW: Tensor, weight: Tensor, *, tiles: Sequence[Tiles] | None = None
    ) -> tuple[Tensor, PoolIndices]:
        """bf16 [B, K, H // 2, W // 2]: the 2×2 maxima of the convolution. H and W are 2 or more."""
        count, (height, width) = len(x_BCHW), _sides(x_BCHW)
        out = _empty(count, len(weight), height // 2, width // 2)
        argmax = torch.empty(count, height // 2, width // 2, len(weight), dtype=torch.uint8)
        # what does not enter a maximum is not computed: fewer tiles for odd sides
        tiles = tiles or tile_map(height // 2 * 2, width // 2 * 2, count)
        self._run(x_BCHW, None, _straight(weight), out, argmax, tiles, (height, width))
        return out, PoolIndices(argmax, height, width)

    def input_gradient(
        self, g_BKHW: Tensor, weight: Tensor, *, pooled: PoolIndices | None = None, tiles: Sequence[Tiles] | None = None
    ) -> Tensor:
        """bf16 [B, C, H, W]: the gradient of x."""
        sides = (pooled.height, pooled.width) if pooled else _sides(g_BKHW)
        out = _empty(len(g_BKHW), weight.shape[1], *sides)
        argmax = pooled.argmax if pooled else None
        self._run(g_BKHW, argmax, _rotated(weight), out, None, tiles or tile_map(*sides, len(g_BKHW)), sides)
        return out

    def weight_gradient(
        self, x_BCHW: Tensor, g_BKHW: Tensor, *, pooled: PoolIndices | None = None, tiles: Sequence[Tiles] | None = None
    ) -> Tensor:
        """float32 [K, C, 3, 3]: the gradient of the weights, summed in an order that depends on the threads alone."""
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        g_BKHW = g_BKHW.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x_BCHW.shape
        out_K33C = torch.zeros(g_BKHW.shape[1], 3, 3, channels)
        covered = (height // 2 * 2, width // 2 * 2) if pooled else (height, width)
        for part in tiles or tile_map(*covered, count):
            self._weight_gradient(
                x=x_BCHW,
                g=g_BKHW,
                g_argmax=pooled.argmax if pooled else None,
                out=out_K33C,
                **vars(part),
                N=count,
                H=height,
                W=width,
                C=channels,
                K=g_BKHW.shape[1],
            )
        return out_K33C.permute(0, 3, 1, 2)

    def _run(
        self,
        x: Tensor,
        x_argmax: Tensor | None,
        weights: _Weights,
        out: Tensor,
        out_argmax: Tensor | None,
        tiles: Sequence[Tiles],
        sides: tuple[int, int],
    ) -> None:
        """The convolution of x, or of the map that has x as its 2×2 maxima, into `out`."""
        x = x.contiguous(memory_format=torch.channels_last)
        for part in tiles:
            self._convolve(
                x=x,
                x_argmax=x_argmax,
                weights=weights.first,
                out=out,
                out_argmax=out_argmax,
                **vars(part),
                N=len(x),
                H=sides[0],
                W=sides[1],
                C=x.shape[1],
                K=out.shape[1],
                **weights.strides,
            )


@dataclass(frozen=True)
class _Weights:
    """The address of weight (0, 0, 0, 0), and the strides of k, c, i and j, in values."""

    first: Address
    strides: dict[str, int]


def _sides(maps_BCHW: Tensor) -> tuple[int, int]:
    height, width = maps_BCHW.shape[2:]
    return height, width


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)


def _straight(weight: Tensor) -> _Weights:
    weight = weight.float()
    return _Weights(Address(weight, 0), dict(zip(STRIDES, weight.stride(), strict=True)))


def _rotated(weight: Tensor) -> _Weights:
    """Filters rotated by 180°, from outputs to inputs."""
    weight = weight.float()
    sk, sc, si, sj = weight.stride()
    return _Weights(Address(weight, 2 * (si + sj)), {"sk": sc, "sc": sk, "si": -si, "sj": -sj})


def has_winograd() -> bool:
    """Whether this machine has what the kernels need, and nothing better: AMX multiplies faster than they save."""
    return "avx512_bf16" in cpu_features() and "amx_bf16" not in cpu_features()


@functools.cache
def winograd(folder: Path) -> Winograd | None:
    """The kernels, kept in `folder`; None where `has_winograd` says no, and where they can't be built."""
    if not has_winograd():
        return None
    try:
        return Winograd(folder)
    except KernelError as error:
        say_unused("winograd", error)
        return None


@functools.cache
def tile_map(height: int, width: int, count: int) -> tuple[Tiles, ...]:
    """The tiles for `count` maps: large ones, small ones, or large ones and small ones for the rest.

    Those that need the fewest products; of several, the ones with more small tiles, which are more exact.
    """
    ways = [_parts(rows, columns) for rows in _lines(height) for columns in _lines(width)]
    return min(ways, key=lambda parts: sum(_products(part, count) for part in parts))


def _lines(side: int) -> list[list[tuple[int, int, int]]]:
    """Ways to cut a side into runs of tiles, as (length of a tile, where the run begins, tiles)."""
    fours, left = divmod(side, 4)
    mixed = [(4, 0, fours), (2, 4 * fours, math.ceil(left / 2))]
    ways = [[(2, 0, math.ceil(side / 2))], mixed, [(4, 0, math.ceil(side / 4))]]
    return [[run for run in way if run[2]] for way in ways]


def _parts(rows: list[tuple[int, int, int]], columns: list[tuple[int, int, int]]) -> tuple[Tiles, ...]:
    return tuple(
        Tiles(*(value for pair in zip(row, column, strict=True) for value in pair))
        for row in rows
        for column in columns
    )


def _products(tiles: Tiles, count: int) -> int:
    return (tiles.tile_h + 2) * (tiles.tile_w + 2) * (tiles.down * tiles.across * count + TILES_PER_KIND)


def is_faster(x_BCHW: Tensor, num_filters: int) -> bool:
    """Whether the kernels are faster than what torch has, by timings on maps of 1 to 112 px with 6 to 512 channels."""
    count, channels, height, width = x_BCHW.shape
    return (
        min(height, width) >= MIN_SIDE
        and min(channels, num_filters) >= MIN_CHANNELS
        and count * height * width >= MIN_PIXELS_PER_CHANNEL * math.sqrt(channels * num_filters)
    )
