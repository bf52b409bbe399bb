"""Fake quantization: a network learns while its weights and activations are rounded as int8 will round them.

What was trained so loses less when it is quantized after training (arXiv:1712.05877). Rounded are the weights of
convolutions and linear layers, per output channel and symmetric, and what these layers are given, per tensor, in the
range that it has in this batch, symmetric where it has negative values: there is no state to keep. Folding a batch
norm into a weight scales each of its output channels, and their rounding with them: it need not be simulated.
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
# a tensor of zeros has no range
LEAST_SCALE = 1e-12


class FakeQuantization(TorchFunctionMode):
    """While it is entered, convolutions and linear layers compute with rounded weights and inputs; gradients pass."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `func`, with rounded tensors where it is one of QUANTIZED."""
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
        # by arithmetic: a branch would wait for the values
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
