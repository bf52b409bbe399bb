"""mixup and cutmix: two images become one, and so do their labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cutmix", "mix", "mixup"]


def mix(
    images_BCHW: Tensor,
    labels_B: Tensor,
    *,
    num_classes: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """mixup or cutmix of a batch with itself in another order; a coin decides where both are on (alpha > 0).

    Returns images and soft labels, float32 [B, K], rows summing to 1.
    """
    device = images_BCHW.device
    order_B = torch.randperm(len(images_BCHW), generator=generator, device=device)
    use_mixup = mixup_alpha > 0
    if use_mixup and cutmix_alpha > 0:
        use_mixup = bool(torch.rand((), generator=generator, device=device) < 0.5)
    share = _beta(mixup_alpha if use_mixup else cutmix_alpha, generator, device)
    if use_mixup:
        images_BCHW = mixup(images_BCHW, order_B, share)
    else:
        corner = torch.rand(2, generator=generator, device=device).tolist()
        images_BCHW, share = cutmix(images_BCHW, order_B, share, (corner[0], corner[1]))
    one_hot_BK = functional.one_hot(labels_B, num_classes).float()
    return images_BCHW, share * one_hot_BK + (1 - share) * one_hot_BK[order_B]


def mixup(images_BCHW: Tensor, order_B: Tensor, share: float) -> Tensor:
    """share · image + (1 - share) · the image that `order_B` names, float32 (arXiv:1710.09412)."""
    pixels = images_BCHW.float()
    return torch.lerp(pixels[order_B], pixels, share)


def cutmix(images_BCHW: Tensor, order_B: Tensor, share: float, centre: tuple[float, float]) -> tuple[Tensor, float]:
    """A box of the image that `order_B` names laid into each image (arXiv:1905.04899).

    The box has the image's aspect and an area of 1 - share; its centre is at (row, column), as shares of the image, and
    what lies outside is cut off. Returns the images and the share that the first image really keeps.
    """
    height, width = images_BCHW.shape[-2:]
    part = (1 - share) ** 0.5
    half_height, half_width = part * height / 2, part * width / 2
    row, column = centre[0] * height, centre[1] * width
    top, bottom = max(0, round(row - half_height)), min(height, round(row + half_height))
    left, right = max(0, round(column - half_width)), min(width, round(column + half_width))
    mixed = images_BCHW.clone()
    mixed[:, :, top:bottom, left:right] = images_BCHW[order_B, :, top:bottom, left:right]
    kept = 1 - max(0, bottom - top) * max(0, right - left) / (height * width)
    return mixed, kept


def _beta(alpha: float, generator: torch.Generator, device: torch.device) -> float:
    """A draw from Beta(alpha, alpha)."""
    # torch's own Beta can't take a generator; two Gamma draws by Johnk's rule do the same for any alpha
    while True:
        first, second = torch.rand(2, generator=generator, device=device, dtype=torch.float64).tolist()
        if alpha == 1.0:
            return float(first)
        x, y = first ** (1 / alpha), second ** (1 / alpha)
        if alpha > 1:
            # for large alpha Johnk's rule rejects nearly all: the normal approximation is good there
            return float(min(1.0, max(0.0, 0.5 + _normal(first, second) * (1 / (4 * (2 * alpha + 1))) ** 0.5)))
        if 0 < x + y <= 1:
            return float(x / (x + y))


def _normal(first: float, second: float) -> float:
    """A standard normal draw from two uniform ones (Box and Muller 1958)."""
    import math

    return math.sqrt(-2 * math.log(max(first, 1e-300))) * math.cos(2 * math.pi * second)
