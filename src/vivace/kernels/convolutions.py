"""Replaces the plain 3×3 convolutions of any network by faster ones, without changing its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vivace.kernels.pooled import convolve_and_pool

__all__ = ["ReplacedConvolutions"]


class ReplacedConvolutions(TorchFunctionMode):
    """While it is entered, 3×3 convolutions on a CPU with stride 1 and padding 1 are passed to `replace` first."""

    def replace(self, x_BCHW: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
        """[B, K, H, W] in `dtype`, that of autocast or of x: the convolution without bias; None: torch has to do it."""
        raise NotImplementedError

    def replace_pooled(self, x_BCHW: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
        """[B, K, H // 2, W // 2] in `dtype`: its 2×2 maxima; None, as it is by default: not both at once."""
        return None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `func`, torch's convolution replaced where that is faster."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, *options = args
            out = self.replace(x, weight, _dtype(x)) if _is_plain(x, weight, options) else None
            if out is not None:
                return out if bias is None else out + bias.to(out.dtype).view(-1, 1, 1)
        if func is convolve_and_pool and args[0].device.type == "cpu":
            x, weight = args
            out = self.replace_pooled(x, weight, _dtype(x))
            if out is not None:
                return out
        return func(*args, **kwargs)


def _dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _is_plain(x_BCHW: Tensor, weight: Tensor, options: list[Any]) -> bool:
    """Whether it is a 3×3 convolution on a CPU with stride 1 and padding 1; options: what follows conv2d's bias."""
    stride, padding, dilation, groups = options
    return (
        x_BCHW.device.type == "cpu"
        and weight.shape[-2:] == (3, 3)
        and x_BCHW.ndim == 4
        and padding in ("same", 1, (1, 1))
        and stride in (1, (1, 1))
        and dilation in (1, (1, 1))
        and groups == 1
    )
