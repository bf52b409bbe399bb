"""Weight gradients of convolutions on small maps, with the images of a batch laid side by side.

Shapes: x_BCHW the input of a convolution, g_BKHW the gradient of its output, both channels_last; t images to a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["TiledGradients", "tile_images"]

# rows of 16 and more are as fast as they are
MAX_SIDE = 12
# columns of a tile: a few times the 32 values that a multiplication of AMX takes at once
TILE_COLUMNS = 128


class TiledGradients(TorchFunctionMode):
    """While it is entered, 3×3 convolutions of small maps in bf16 or fp16 on a CPU get a faster weight gradient.

    The gradient is a sum over all positions of all images, taken row by row; on a map of 4 × 4 a row fills an eighth of
    what the hardware multiplies at once. With images side by side, a column of zeros between them, rows are long: on a
    CPU with AMX the gradient of 256 channels takes a tenth of the time at 2 × 2, a fifth at 4 × 4, a half at 8 × 8.
    The same products are summed in another order: results differ by rounding. Any network, no change to its modules.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `func`, torch's convolution replaced where that pays."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, *options = args
            if _pays(x, weight, options):
                if torch.is_autocast_enabled("cpu"):
                    dtype = torch.get_autocast_dtype("cpu")
                    x, weight = x.to(dtype), weight.to(dtype)
                out: Tensor = _TiledConv.apply(x, weight)
                return out if bias is None else out + bias.to(out.dtype).view(-1, 1, 1)
        return func(*args, **kwargs)


def _pays(x_BCHW: Tensor, weight: Tensor, options: list[Any]) -> bool:
    stride, padding, dilation, groups = options
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BCHW.dtype
    return (
        weight.requires_grad
        and torch.is_grad_enabled()
        and x_BCHW.device.type == "cpu"
        and dtype in (torch.bfloat16, torch.float16)
        and weight.shape[-2:] == (3, 3)
        and x_BCHW.ndim == 4
        and x_BCHW.shape[-1] <= MAX_SIDE
        and padding in ("same", 1, (1, 1))
        and stride in (1, (1, 1))
        and dilation in (1, (1, 1))
        and groups == 1
    )


def tile_images(x_BCHW: Tensor) -> Tensor:
    """Images side by side, a column of zeros behind each: [ceil(B / t), C, H, t · (W + 1)], channels_last."""
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
    """A 3×3 convolution with stride 1, padding 1 and no bias; its weight gradient is taken from tiles."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight)
        return torch.conv2d(x_BCHW, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, g_BKHW: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_BCHW, weight = ctx.saved_tensors
        g_BKHW = g_BKHW.contiguous(memory_format=torch.channels_last)
        needs_x, needs_weight = ctx.needs_input_grad
        x_grad = _backward(g_BKHW, x_BCHW, weight, (True, False))[0] if needs_x else None
        if not needs_weight:
            return x_grad, None
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        return x_grad, _backward(tile_images(g_BKHW), tile_images(x_BCHW), weight, (False, True))[1]


def _backward(g_BKHW: Tensor, x_BCHW: Tensor, weight: Tensor, of: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    x_grad, weight_grad, _ = torch.ops.aten.convolution_backward(
        g_BKHW, x_BCHW, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*of, False]
    )
    return x_grad, weight_grad
