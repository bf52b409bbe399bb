"""Weight gradients of 3×3 convolutions taken from tiles that hold many images, in bf16 or fp16 on a CPU.

Shapes: x_BCHW the input of a convolution, g_BKHW the gradient of its output, both channels_last; t images to a tile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivace.kernels.convolutions import ReplacedConvolutions
from vivace.kernels.gradients import WeightGradient, is_faster, weight_gradient

__all__ = ["TiledGradients", "tile_images"]

# rows of 16 and more are as fast as they are
MAX_SIDE = 12
# columns of a tile: a few times the 32 values that a multiplication of AMX takes at once
TILE_COLUMNS = 128


class TiledGradients(ReplacedConvolutions):
    """While it is entered, 3×3 convolutions in bf16 or fp16 on a CPU get a faster weight gradient.

    The gradient is a sum over all positions of all images, taken row by row; on a map of 4 × 4 a row fills an eighth of
    what the hardware multiplies at once. On a CPU with AMX, in bf16, our kernel (in the folder `kernels`; None: without
    it) processes 32 images at once instead, pixel by pixel. Elsewhere torch gets small maps side by side with a column
    of zeros between them, so that rows are long. The same products are summed in another order: results differ by
    rounding. Works for any network, without changing its modules. docs/log/2026-11-28.md has the times.
    """

    def __init__(self, kernels: Path | None = None) -> None:
        super().__init__()
        self._kernel = None if kernels is None else weight_gradient(kernels)

    def replace(self, x_BCHW: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The same convolution with another weight gradient, for weights that learn in half precision."""
        learns = weight.requires_grad and torch.is_grad_enabled()
        if not learns or dtype not in (torch.bfloat16, torch.float16):
            return None
        kernel = self._kernel if dtype == torch.bfloat16 and is_faster(x_BCHW, len(weight)) else None
        if kernel is None and x_BCHW.shape[-1] > MAX_SIDE:
            return None
        out: Tensor = _TiledConv.apply(x_BCHW.to(dtype), weight, dtype, kernel)
        return out


def tile_images(x_BCHW: Tensor) -> Tensor:
    """Images side by side, a column of zeros after each: [ceil(B / t), C, H, t · (W + 1)], channels_last."""
    count, channels, height, width = x_BCHW.shape
    per_tile = max(1, min(count, TILE_COLUMNS // (width + 1)))
    full, rest = divmod(count, per_tile)
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    tiles = x_BCHW.new_zeros(full + (rest > 0), height, per_tile, width + 1, channels)
    whole = x_BHWC[: full * per_tile].view(full, per_tile, height, width, channels)
    tiles[:full, :, :, :width] = whole.transpose(1, 2)
    if rest:
        tiles[full, :, :rest, :width] = x_BHWC[full * per_tile :].transpose(0, 1)
    return tiles.view(len(tiles), height, per_tile * (width + 1), channels).permute(0, 3, 1, 2)


class _TiledConv(torch.autograd.Function):
    """A 3×3 convolution in `dtype` with stride 1, padding 1 and no bias; its weight gradient is taken from tiles."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight: Tensor, dtype: torch.dtype, kernel: WeightGradient | None) -> Tensor:
        ctx.kernel, ctx.weight_dtype = kernel, weight.dtype
        weight = weight.to(dtype)
        ctx.save_for_backward(x_BCHW, weight)
        return torch.conv2d(x_BCHW, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, g_BKHW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight = ctx.saved_tensors
        g_BKHW = g_BKHW.contiguous(memory_format=torch.channels_last)
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        x_grad = _backward(g_BKHW, x_BCHW, weight, (True, False))[0] if needs_x else None
        weight_grad = None
        if needs_weight and ctx.kernel is not None:
            weight_grad = ctx.kernel(x_BCHW, g_BKHW)
        elif needs_weight:
            x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
            weight_grad = _backward(tile_images(g_BKHW), tile_images(x_BCHW), weight, (False, True))[1]
        return x_grad, None if weight_grad is None else weight_grad.to(ctx.weight_dtype), None, None


def _backward(g_BKHW: Tensor, x_BCHW: Tensor, weight: Tensor, of: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    x_grad, weight_grad, _ = torch.ops.aten.convolution_backward(
        g_BKHW, x_BCHW, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*of, False]
    )
    return x_grad, weight_grad
