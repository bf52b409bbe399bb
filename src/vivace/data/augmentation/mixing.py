"""mixup and cutmix: two images become one, and so do their labels.

Both draw once per batch, as the papers do: a pair of numbers says how all images of the batch are mixed.
"""

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

    Returns images (float32 by mixup, the type given by cutmix) and soft labels, float32 [B, K], rows summing to 1.
    """
    device = images_BCHW.device
    order_B = torch.randperm(len(images_BCHW), generator=generator, device=device)
    # one transfer for all of them: every read waits for the device
    coin, row, column = torch.rand(3, generator=generator, device=device).tolist()
    use_mixup = coin < 0.5 if mixup_alpha and cutmix_alpha else mixup_alpha > 0
    share = _beta(mixup_alpha if use_mixup else cutmix_alpha, generator)
    if use_mixup:
        images_BCHW = mixup(images_BCHW, order_B, share)
    else:
        images_BCHW, share = cutmix(images_BCHW, order_B, share, (row, column))
    one_hot_BK = functional.one_hot(labels_B, num_classes).float()
    return images_BCHW, torch.lerp(one_hot_BK[order_B], one_hot_BK, share)


def mixup(images_BCHW: Tensor, order_B: Tensor, share: float) -> Tensor:
    """share · image + (1 - share) · the image that `order_B` names, float32 (arXiv:1710.09412)."""
    return torch.lerp(_reordered(images_BCHW, order_B).float(), images_BCHW.float(), share)


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
    mixed[:, :, top:bottom, left:right] = _reordered(images_BCHW, order_B)[:, :, top:bottom, left:right]
    kept = 1 - max(0, bottom - top) * max(0, right - left) / (height * width)
    return mixed, kept


def _reordered(images_BCHW: Tensor, order_B: Tensor) -> Tensor:
    # whole images in memory order: several times as fast as advanced indexing
    return images_BCHW.permute(0, 2, 3, 1).contiguous().index_select(0, order_B).permute(0, 3, 1, 2)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha), as the share of one of two Gamma draws in their sum."""
    # torch.distributions takes no generator; what it calls does. float64: a small alpha gives tiny draws
    shape = torch.full((2,), alpha, dtype=torch.float64, device=generator.device)
    first, second = torch._standard_gamma(shape, generator=generator).tolist()
    # torch keeps its draws above 0
    return float(first / (first + second))
