"""A 3×3 convolution and max-pooling requested together, for kernels that do both at once.

Shapes: x_BCHW; weight [K, C, 3, 3].
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from vivace.torch_private import has_forward_hooks

__all__ = ["can_ask", "convolve_and_pool", "is_halving"]


def convolve_and_pool(x_BCHW: Tensor, weight: Tensor) -> Tensor | None:
    """[B, K, H // 2, W // 2]: 2×2 maxima of the convolution with stride 1, padding 1 and no bias.

    None: no active mode does both at once, and they have to be done one after the other. A mode
    (`torch.overrides.TorchFunctionMode`) that does both intercepts this function.
    """
    if has_torch_function((x_BCHW, weight)):
        taken: Tensor | None = handle_torch_function(convolve_and_pool, (x_BCHW, weight), x_BCHW, weight)
        return taken
    return None


def can_ask(conv: nn.Module, pool: nn.Module, x_BCHW: Tensor) -> bool:
    """Whether `convolve_and_pool` computes these two layers, and x is large enough to be halved."""
    return (
        type(conv) is nn.Conv2d
        and isinstance(pool, nn.MaxPool2d)
        and is_halving(pool)
        and (conv.kernel_size, conv.padding, conv.stride, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        # hooks on the convolution must see its output
        and not has_forward_hooks(conv)
        and x_BCHW.ndim == 4
        and min(x_BCHW.shape[2:]) >= 2
    )


def is_halving(pool: nn.MaxPool2d) -> bool:
    """Whether it takes the maxima of disjoint 2×2 blocks."""
    plain = (pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices) == (0, 1, False, False)
    return plain and pool.kernel_size in (2, (2, 2)) and pool.stride in (2, (2, 2))
