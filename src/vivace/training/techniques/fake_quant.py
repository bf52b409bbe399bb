"""Fake quantization: training with weights and activations rounded as in int8 (arXiv:1712.05877).

A network that is trained this way loses less accuracy when it is quantized. The weights of convolutions and linear
layers are rounded per output channel, symmetric about 0. Their inputs are rounded per tensor, in the range of the
current batch (symmetric if there are negative values), so there is no state. Folding a batch norm into a weight scales
each output channel together with its rounding, so it need not be simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vivace.kernels.pooled import convolve_and_pool

__all__ = ["FakeQuantization", "fake_quantize_activation", "fake_quantize_weight"]

# functions of (input, weight, …)
QUANTIZED = {torch.nn.functional.conv2d, torch.nn.functional.linear, convolve_and_pool}
LARGEST = 127
LARGEST_UNSIGNED = 255
# a tensor of zeros has no range: do not divide by zero
LEAST_SCALE = 1e-12


class FakeQuantization(TorchFunctionMode):
    """While it is active, convolutions and linear layers use rounded weights and inputs; gradients pass unchanged."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `func`, with rounded tensors if it is one of QUANTIZED."""
        if func in QUANTIZED and len(args) >= 2:
            x, weight, *others = args
            args = (fake_quantize_activation(x), fake_quantize_weight(weight), *others)
        return func(*args, **(kwargs or {}))


def fake_quantize_activation(x: Tensor) -> Tensor:
    """x → the nearest of 256 evenly spaced values from 0 on, or of 255 symmetric about 0; same shape and dtype.

    The gradient is that of the identity.
    """
    values = x.float()
    with torch.no_grad():
        low, high = torch.aminmax(values)
        # torch.where, not a branch: that would wait for the device
        levels = torch.where(low < 0, LARGEST, LARGEST_UNSIGNED)
        scale = (torch.maximum(-low, high) / levels).clamp_min(LEAST_SCALE)
        error = (values / scale).round() * scale - values
    return (values + error).to(x.dtype)


def fake_quantize_weight(weight_O: Tensor) -> Tensor:
    """weight, output channels first → of each channel the nearest of 255 values, symmetric about 0; same shape, dtype.

    The gradient is that of the identity.
    """
    values = weight_O.float()
    scale_O = (values.detach().flatten(1).abs().amax(1) / LARGEST).clamp_min(LEAST_SCALE)
    zero_O = torch.zeros_like(scale_O, dtype=torch.int32)
    rounded: Tensor = torch.fake_quantize_per_channel_affine(values, scale_O, zero_O, 0, -LARGEST, LARGEST)
    return rounded.to(weight_O.dtype)
