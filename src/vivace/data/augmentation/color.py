"""Grey, blending and colour jitter, for a batch at once.

images_BCHW are uint8 or float32 on the 0..255 scale; what comes out has the same type and strides.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["adjust", "blend_", "color_jitter", "grey", "like"]

# ITU-R 601 luma, as torchvision rounds it
LUMA = (0.2989, 0.587, 0.114)


def color_jitter(images_BCHW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation, in this order, each times a factor uniform in 1 ± strength.

    torchvision's ColorJitter with a fixed order and no hue.
    """
    count, device = len(images_BCHW), images_BCHW.device
    factors = 1 + strength * (2 * torch.rand(3, count, 1, 1, 1, generator=generator, device=device) - 1)
    return adjust(images_BCHW, factors[0], factors[1], factors[2])


def adjust(images_BCHW: Tensor, brightness_B111: Tensor, contrast_B111: Tensor, saturation_B111: Tensor) -> Tensor:
    """Images with brightness, contrast and saturation times the factors, cut to 0..255 after each."""
    # planes: the weighted sum of channels is three times as fast as with channels side by side
    pixels = images_BCHW.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    pixels.mul_(brightness_B111).clamp_(0, 255)
    mean_B111 = grey(pixels).mean((2, 3), keepdim=True)
    blend_(pixels, mean_B111, contrast_B111).clamp_(0, 255)
    if images_BCHW.shape[1] == 3:
        blend_(pixels, grey(pixels), saturation_B111).clamp_(0, 255)
    return like(pixels, images_BCHW)


def grey(pixels_BCHW: Tensor) -> Tensor:
    """Luma of float pixels, [B, 1, H, W]; grey images as they are."""
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    red, green, blue = pixels_BCHW.split(1, 1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def blend_(pixels_BCHW: Tensor, other: Tensor, factor_B111: Tensor) -> Tensor:
    """factor · pixels + (1 - factor) · other, in place: nearer to `other` for a factor below 1, farther above it."""
    # `other` may be made of the same memory: its share is taken first
    rest = other * (1 - factor_B111)
    return pixels_BCHW.mul_(factor_B111).add_(rest)


def like(pixels_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Float pixels in 0..255, which may be changed, in the type of images_BCHW (rounded for uint8), channels_last."""
    if images_BCHW.dtype == torch.uint8:
        # 0.5 and cut off rather than round(): one pass less
        pixels_BCHW = pixels_BCHW.add_(0.5).to(torch.uint8)
    return pixels_BCHW.contiguous(memory_format=torch.channels_last)
