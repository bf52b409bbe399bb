"""Greyscale, blending and colour jitter of a batch.

images_BCHW are uint8 or float32 on the 0..255 scale; outputs have the same dtype and strides.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["adjust", "blend_", "color_jitter", "grey", "like"]

# ITU-R 601 luma, rounded as in torchvision
LUMA = (0.2989, 0.587, 0.114)


def color_jitter(images_BCHW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Scale brightness, contrast and saturation, in this order, each by a random factor uniform in 1 ± strength.

    This is torchvision's ColorJitter with a fixed order and without hue.
    """
    count, device = len(images_BCHW), images_BCHW.device
    factors = 1 + strength * (2 * torch.rand(3, count, 1, 1, 1, generator=generator, device=device) - 1)
    return adjust(images_BCHW, factors[0], factors[1], factors[2])


def adjust(images_BCHW: Tensor, brightness_B111: Tensor, contrast_B111: Tensor, saturation_B111: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation by the factors, float [B, 1, 1, 1]; clamped to 0..255 after each."""
    # NCHW: the weighted sum over channels is faster than in channels_last
    pixels = images_BCHW.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    pixels.mul_(brightness_B111).clamp_(0, 255)
    mean_B111 = grey(pixels).mean((2, 3), keepdim=True)
    blend_(pixels, mean_B111, contrast_B111).clamp_(0, 255)
    if images_BCHW.shape[1] == 3:
        blend_(pixels, grey(pixels), saturation_B111).clamp_(0, 255)
    return like(pixels, images_BCHW)


def grey(pixels_BCHW: Tensor) -> Tensor:
    """Luma of float pixels, [B, 1, H, W]; greyscale images are returned unchanged."""
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    red, green, blue = pixels_BCHW.split(1, 1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def blend_(pixels_BCHW: Tensor, other: Tensor, factor_B111: Tensor) -> Tensor:
    """factor · pixels + (1 - factor) · other, in place; a factor above 1 moves away from `other`."""
    # computed first, because `other` may share memory with the pixels
    rest = other * (1 - factor_B111)
    return pixels_BCHW.mul_(factor_B111).add_(rest)


def like(pixels_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Float pixels in 0..255, converted to the dtype of images_BCHW (rounded for uint8), channels_last.

    May modify pixels_BCHW.
    """
    if images_BCHW.dtype == torch.uint8:
        # adding 0.5 and truncating saves a pass over round()
        pixels_BCHW = pixels_BCHW.add_(0.5).to(torch.uint8)
    return pixels_BCHW.contiguous(memory_format=torch.channels_last)
