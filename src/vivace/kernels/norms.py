"""Max-pooling, batch norm and activation as one operator on a CPU.

Shapes: x_BCHW bf16, channels_last; `pooled` is what is normalised: x, or its 2×2 maxima.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from vivace.kernels.build import load_library
from vivace.kernels.call import Kernel
from vivace.kernels.pooled import can_ask, convolve_and_pool, is_halving

__all__ = ["FusedSequential", "fused_norms"]

# as norms.c numbers them
RELU, SILU, GELU, NONE = range(4)
_active: _NormKernels | None = None


class _NormKernels:
    """The functions of norms.c."""

    def __init__(self, folder: Path) -> None:
        library, rows = load_library("norms", folder), "rows C"
        maps, factors = "N H W C", "scale shift by_value constant"
        self.pool_and_sum = Kernel(library, "pool_and_sum", pointers="x pooled argmax sums", sizes=maps)
        self.sum_rows = Kernel(library, "sum_rows", pointers="x sums", sizes=rows)
        self.apply = Kernel(library, "apply", pointers="x out scale shift", sizes=f"{rows} kind")
        self.sum_gradient = Kernel(library, "sum_gradient", pointers="g x sums scale shift", sizes=f"{rows} kind")
        self.spread_rows = Kernel(library, "spread_rows", pointers=f"g x out {factors}", sizes=f"{rows} kind")
        self.spread_maxima = Kernel(
            library, "spread_maxima", pointers=f"g x argmax out {factors}", sizes=f"{maps} kind"
        )


@functools.cache
def _kernels(folder: Path) -> _NormKernels:
    return _NormKernels(folder)


@contextlib.contextmanager
def fused_norms(folder: Path) -> Iterator[None]:
    """While it is entered, `FusedSequential` runs batch norm with its neighbours as one kernel, kept in `folder`.

    Raises KernelError if the kernel can't be built here.
    """
    global _active
    before, _active = _active, _kernels(folder)
    try:
        yield
    finally:
        _active = before


class FusedSequential(nn.Sequential):
    """A Sequential whose [2×2 max-pooling,] batch norm [and activation] run as one within `fused_norms`.

    That is in bf16 on a CPU, while training, or in eval mode without gradients; otherwise, and for all other layers, it
    is a plain Sequential. Statistics are taken in float32 as torch takes them: results differ by rounding. Pooling
    after a convolution is requested together with it (`convolve_and_pool`).
    """

    def forward(self, x: Tensor) -> Tensor:
        """x_BCHW through all layers."""
        if _active is None:
            out: Tensor = super().forward(x)
            return out
        layers = list(self)
        while layers:
            pooled = convolve_and_pool(x, layers[0].weight) if _asks_both(layers, x) else None
            if pooled is not None:
                x, layers = pooled, layers[2:]
                continue
            pool, norm, kind, num_layers = _match(layers)
            if norm is not None and _takes(x, norm, pool):
                x = (_norm if norm.training else _eval_norm)(x, norm, pool=pool, kind=kind)
            else:
                num_layers = 1
                x = layers[0](x)
            layers = layers[num_layers:]
        return x


def _asks_both(layers: list[nn.Module], x: Tensor) -> TypeGuard[list[nn.Conv2d]]:
    """Whether the first of `layers` is a convolution that may run together with the pooling after it."""
    return len(layers) > 1 and can_ask(layers[0], layers[1], x)


def _match(layers: list[nn.Module]) -> tuple[bool, nn.BatchNorm2d | None, int, int]:
    """(pooled, norm, kind of activation, number of layers) at the start of `layers`; no norm: nothing to fuse."""
    pool = isinstance(layers[0], nn.MaxPool2d) and is_halving(layers[0])
    norm = layers[int(pool)] if len(layers) > int(pool) else None
    if not isinstance(norm, nn.BatchNorm2d):
        return False, None, NONE, 1
    after = layers[int(pool) + 1] if len(layers) > int(pool) + 1 else None
    kind = _kind(after)
    return pool, norm, kind, int(pool) + 1 + (kind != NONE)


def _kind(module: nn.Module | None) -> int:
    if isinstance(module, nn.GELU):
        return GELU if module.approximate == "none" else NONE
    return RELU if type(module) is nn.ReLU else SILU if type(module) is nn.SiLU else NONE


def _takes(x_BCHW: Tensor, norm: nn.BatchNorm2d, pool: bool) -> bool:
    return (
        x_BCHW.dtype == torch.bfloat16
        and x_BCHW.device.type == "cpu"
        and x_BCHW.ndim == 4
        and x_BCHW.numel() > 0
        and (norm.training or not torch.is_grad_enabled())
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and (not pool or min(x_BCHW.shape[2:]) >= 2)
    )


def _norm(x_BCHW: Tensor, norm: nn.BatchNorm2d, *, pool: bool, kind: int) -> Tensor:
    out: Tensor
    out, mean_C, var_C, count = _PoolNormAct.apply(x_BCHW, norm.weight, norm.bias, norm.eps, pool, kind)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean_C.to(norm.running_mean.dtype), norm.momentum)
        norm.running_var.lerp_((var_C * (count / max(count - 1, 1))).to(norm.running_var.dtype), norm.momentum)
    return out


def _eval_norm(x_BCHW: Tensor, norm: nn.BatchNorm2d, *, pool: bool, kind: int) -> Tensor:
    """As `_norm`, by the running statistics and without gradients."""
    kernels = _active
    assert kernels is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    channels = x_BCHW.shape[1]
    pooled = _pool(kernels, x_BCHW, torch.empty(2, channels, dtype=torch.float64))[0] if pool else x_BCHW
    scale_C = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    shift_C = norm.bias.double() - norm.running_mean.double() * scale_C
    out = torch.empty_like(pooled, memory_format=torch.channels_last)
    kernels.apply(
        x=pooled,
        out=out,
        scale=scale_C.float(),
        shift=shift_C.float(),
        rows=pooled.numel() // channels,
        C=channels,
        kind=kind,
    )
    return out


def _pool(kernels: _NormKernels, x_BCHW: Tensor, sums_2C: Tensor) -> tuple[Tensor, Tensor]:
    """The 2×2 maxima, and which of the four each one is; their sums and sums of squares are put into `sums_2C`."""
    num_images, channels, height, width = x_BCHW.shape
    half = (num_images, channels, height // 2, width // 2)
    pooled = torch.empty(half, dtype=x_BCHW.dtype, memory_format=torch.channels_last)
    argmax = torch.empty(pooled.numel(), dtype=torch.uint8)
    kernels.pool_and_sum(
        x=x_BCHW, pooled=pooled, argmax=argmax, sums=sums_2C, N=num_images, H=height, W=width, C=channels
    )
    return pooled, argmax


class _PoolNormAct(torch.autograd.Function):
    """activation(weight · (pooled - mean) / sqrt(var + eps) + bias), and mean_C, var_C float64, values per channel."""

    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float, pool: bool, kind: int
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        kernels = _active
        assert kernels is not None
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        channels = x_BCHW.shape[1]
        sums_2C = torch.empty(2, channels, dtype=torch.float64)
        pooled, argmax = x_BCHW, None
        if pool:
            pooled, argmax = _pool(kernels, x_BCHW, sums_2C)
        else:
            kernels.sum_rows(x=x_BCHW, sums=sums_2C, rows=x_BCHW.numel() // channels, C=channels)
        count = pooled.numel() // channels
        mean_C = sums_2C[0] / count
        var_C = (sums_2C[1] / count - mean_C.square()).clamp_(min=0)
        inverse_C = torch.rsqrt(var_C + eps)
        scale_C = (weight_C.double() * inverse_C).float()
        shift_C = (bias_C.double() - mean_C * weight_C.double() * inverse_C).float()
        out = torch.empty_like(pooled, memory_format=torch.channels_last)
        kernels.apply(x=pooled, out=out, scale=scale_C, shift=shift_C, rows=count, C=channels, kind=kind)
        ctx.save_for_backward(pooled, argmax, scale_C, shift_C, mean_C, inverse_C)
        ctx.kernels, ctx.kind, ctx.shape = kernels, kind, x_BCHW.shape
        ctx.mark_non_differentiable(mean_C, var_C)
        return out, mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, g_BCHW: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        pooled, argmax, scale_C, shift_C, mean_C, inverse_C = ctx.saved_tensors
        kernels = ctx.kernels
        num_images, channels, height, width = ctx.shape
        count = pooled.numel() // channels
        g_BCHW = g_BCHW.contiguous(memory_format=torch.channels_last)
        sums_2C = torch.empty(2, channels, dtype=torch.float64)
        line = {"scale": scale_C, "shift": shift_C}
        kernels.sum_gradient(g=g_BCHW, x=pooled, sums=sums_2C, **line, rows=count, C=channels, kind=ctx.kind)
        bias_grad = sums_2C[0]
        weight_grad = (sums_2C[1] - mean_C * bias_grad) * inverse_C
        # scale · (d - mean of d - normalised · mean of d · normalised), written as linear in the pooled value
        by_value = -scale_C.double() * inverse_C * weight_grad / count
        constant = -scale_C.double() * bias_grad / count - by_value * mean_C
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = torch.empty(ctx.shape, dtype=g_BCHW.dtype, memory_format=torch.channels_last)
            given = {"g": g_BCHW, "x": pooled, "out": x_grad, **line, "kind": ctx.kind}
            given |= {"by_value": by_value.float(), "constant": constant.float()}
            if argmax is None:
                kernels.spread_rows(**given, rows=count, C=channels)
            else:
                kernels.spread_maxima(**given, argmax=argmax, N=num_images, H=height, W=width, C=channels)
        return x_grad, weight_grad.float(), bias_grad.float(), None, None, None
