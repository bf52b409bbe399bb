"""3×3 convolutions of a network by Winograd's minimal filtering, in bf16 on a CPU.

Shapes: x_BCHW the input of a convolution, g_BKHW the gradient of its output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivace.kernels.convolutions import ReplacedConvolutions
from vivace.kernels.winograd import Winograd, is_faster, winograd

__all__ = ["WinogradConvolutions"]


class WinogradConvolutions(ReplacedConvolutions):
    """While it is entered, 3×3 convolutions in bf16 on a CPU need 25–50 % of the multiplications.

    Forward, and for both gradients. For CPUs that have the bf16 dot products of AVX-512 and no AMX: there convolutions
    are most of a step. The kernels are built into the folder `kernels`; where they can't be built, and for shapes for
    which they are not faster, convolutions are torch's. Results differ by more than rounding of the output: see
    `vivace.kernels.winograd.Winograd`. Works for any network, without changing its modules.
    """

    def __init__(self, kernels: Path) -> None:
        super().__init__()
        self._kernels = winograd(kernels)

    def replace(self, x_BCHW: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The convolution by the kernels, in bf16 and where they are faster."""
        return self._convolve(x_BCHW, weight, dtype, pool=False)

    def replace_pooled(self, x_BCHW: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The same with its 2×2 maxima alone: the map itself is never written, nor is its gradient."""
        return self._convolve(x_BCHW, weight, dtype, pool=True)

    def _convolve(self, x_BCHW: Tensor, weight: Tensor, dtype: torch.dtype, *, pool: bool) -> Tensor | None:
        if self._kernels is None or dtype != torch.bfloat16 or not is_faster(x_BCHW, len(weight)):
            return None
        out: Tensor = _WinogradConv.apply(x_BCHW.to(dtype), weight, self._kernels, pool)
        return out


class _WinogradConv(torch.autograd.Function):
    """A 3×3 convolution with stride 1, padding 1 and no bias; weights are rounded only after their transform.

    pool: its 2×2 maxima.
    """

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight: Tensor, kernels: Winograd, pool: bool) -> Tensor:
        pooled = None
        if pool:
            out, pooled = kernels.convolve_and_pool(x_BCHW, weight)
        else:
            out = kernels.convolve(x_BCHW, weight)
        ctx.kernels, ctx.pooled = kernels, pooled
        ctx.save_for_backward(x_BCHW, weight)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight = ctx.saved_tensors
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        g, pooled = g.to(torch.bfloat16), ctx.pooled
        x_grad = ctx.kernels.input_gradient(g, weight, pooled=pooled) if needs_x else None
        weight_grad = None
        if needs_weight:
            weight_grad = ctx.kernels.weight_gradient(x_BCHW, g, pooled=pooled).to(weight.dtype)
        return x_grad, weight_grad, None, None
