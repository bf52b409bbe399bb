"""Pixels to the numbers that a network sees: the one place where it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """images_BCHW on the 0..255 scale, uint8 or float → (images / 255 - mean) / std, float32.

    mean, std: one value per channel on the 0..1 scale. Strides are kept.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        # one multiplication and one addition per value in place of two divisions and a subtraction
        self.register_buffer("scale", (1 / (255 * std_C)).float().view(1, -1, 1, 1))
        self.register_buffer("shift", (-mean_C / std_C).float().view(1, -1, 1, 1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images_BCHW.float(), self.scale)
