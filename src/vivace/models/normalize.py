"""Normalisation of pixels for a network, defined only here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """images_BCHW on the 0..white scale, uint8 or float → (images / white - mean) / std, float32.

    mean, std: one value per channel on the 0..1 scale. white: the pixel value that is 1 on it. shrink: the side of the
    output as a fraction of the images', (0, 1], bilinear with antialiasing. Without it, strides are kept.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], *, white: float = 255.0, shrink: float = 1.0
    ) -> None:
        super().__init__()
        self.shrink = shrink
        mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        # one multiplication and one addition per value in place of two divisions and a subtraction
        self.register_buffer("scale", (1 / (white * std_C)).float().view(1, -1, 1, 1))
        self.register_buffer("shift", (-mean_C / std_C).float().view(1, -1, 1, 1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        if self.shrink < 1:
            side = round(self.shrink * images_BCHW.shape[-1])
            images_BCHW = functional.interpolate(images_BCHW, (side, side), mode="bilinear", antialias=True)
        return torch.addcmul(self.shift, images_BCHW.float(), self.scale)
