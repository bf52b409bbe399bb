"""3×3 convolutions with a quarter to a half of the products, on a CPU with the bf16 dot products of AVX-512.

Winograd's minimal filtering (arXiv:1509.09308): a tile of m × m outputs comes from (m + 2)² products for each pair of
channels in the place of 9 m². Shapes: x_BCHW the input of a convolution, g_BKHW the gradient of its output, both bf16;
weight [K, C, 3, 3] float32.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch
from torch import Tensor

from vivace.errors import KernelError
from vivace.hardware import cpu_features
from vivace.kernels.build import load_library
from vivace.kernels.call import Address, call

__all__ = ["Winograd", "gains", "has_winograd", "tile_side", "winograd"]

# below these the tiles' transforms, or those of the weights, outweigh the products
MIN_CHANNELS = 16
MIN_PIXELS_PER_CHANNEL = 4
# 2 × 2: on a single pixel there is nothing to share
MIN_SIDE = 2


class Winograd:
    """The kernels, for stride 1 and padding 1. What they give is channels_last.

    Both sides of each product are rounded to bf16 after their transform, sums are taken in float32. Against the exact
    result of normal values the error is 0.4 % in root mean square with tiles of 2 × 2, and 1.2 % with 4 × 4, where
    convolutions in bf16 have 0.2 %.
    """

    def __init__(self, folder: Path) -> None:
        """Raises KernelError where they can't be built, or the processor does not have what they need."""
        self._convolutions = load_library("winograd", folder)
        self._gradients = load_library("winograd_gradients", folder)
        if not self._convolutions.usable():
            raise KernelError("this processor has no bf16 dot products: got none of avx512_bf16. Set winograd=false.")

    def convolve(self, x_BCHW: Tensor, weight: Tensor, *, m: int | None = None) -> Tensor:
        """bf16 [B, K, H, W]: the convolution. m: 2 or 4, the side of a tile; None: `tile_side`."""
        weight = weight.float()
        return self._convolve(x_BCHW, weight.shape[0], Address(weight, 0), weight.stride(), m)

    def input_gradient(self, g_BKHW: Tensor, weight: Tensor, *, m: int | None = None) -> Tensor:
        """bf16 [B, C, H, W]: the gradient of x."""
        weight = weight.float()
        sk, sc, si, sj = weight.stride()
        # the convolution by filters that are turned, from outputs to inputs
        turned = Address(weight, 2 * (si + sj))
        return self._convolve(g_BKHW, weight.shape[1], turned, (sc, sk, -si, -sj), m)

    def weight_gradient(self, x_BCHW: Tensor, g_BKHW: Tensor, *, m: int | None = None) -> Tensor:
        """float32 [K, C, 3, 3]: the gradient of the weights, summed in an order that depends on the threads alone."""
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        g_BKHW = g_BKHW.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x_BCHW.shape
        out_K33C = torch.empty(g_BKHW.shape[1], 3, 3, channels)
        sizes = (m or tile_side(height, width), count, height, width, channels, g_BKHW.shape[1])
        call(self._gradients.weight_gradient, x_BCHW, g_BKHW, out_K33C, *sizes)
        return out_K33C.permute(0, 3, 1, 2)

    def _convolve(
        self, x_BCHW: Tensor, filters: int, weights: Address, strides: tuple[int, ...], m: int | None
    ) -> Tensor:
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x_BCHW.shape
        shape = (count, filters, height, width)
        out = torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
        sizes = (m or tile_side(height, width), count, height, width, channels, filters)
        call(self._convolutions.convolve, x_BCHW, weights, out, *sizes, *strides)
        return out


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
    except KernelError:
        return None


def tile_side(height: int, width: int) -> int:
    """2 or 4: which tiles cover such maps with fewer products; 2, the more exact ones, where both need as many."""
    products = {m: math.ceil(height / m) * math.ceil(width / m) * (m + 2) ** 2 for m in (2, 4)}
    return min(products, key=products.__getitem__)


def gains(x_BCHW: Tensor, num_filters: int) -> bool:
    """Whether the kernels are faster than what torch has, measured on maps of 1 to 112 px with 6 to 512 channels."""
    count, channels, height, width = x_BCHW.shape
    return (
        min(height, width) >= MIN_SIDE
        and min(channels, num_filters) >= MIN_CHANNELS
        and count * height * width >= MIN_PIXELS_PER_CHANNEL * math.sqrt(channels * num_filters)
    )
