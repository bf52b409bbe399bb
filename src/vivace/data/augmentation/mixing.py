"""mixup and cutmix: combine pairs of images and their labels.

As in the papers, the mixing parameters are drawn once per batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vivace.torch_private import standard_gamma

__all__ = ["cutmix", "mix", "mixup"]


def mix(
    images_BCHW: Tensor,
    labels_B: Tensor,
    *,
    num_classes: int,
    label_sets_MK: Tensor | None = None,
    mixup_alpha: float,
    cutmix_alpha: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """mixup or cutmix of a batch with a permutation of itself; if both alphas are > 0, one is chosen at random.

    labels_B: int64 in [0, num_classes); with label_sets_MK, float32, the numbers of its rows. Returns images (float32
    with mixup, else the given dtype) and soft labels, float32 [B, K]; rows sum to 1, or to the mean of two sets' sizes.
    """
    device = images_BCHW.device
    order_B = torch.randperm(len(images_BCHW), generator=generator, device=device)
    # a single transfer, because each one waits for the device
    coin, row, column = torch.rand(3, generator=generator, device=device).tolist()
    use_mixup = coin < 0.5 if mixup_alpha and cutmix_alpha else mixup_alpha > 0
    lam = _beta(mixup_alpha if use_mixup else cutmix_alpha, generator)
    if use_mixup:
        images_BCHW = mixup(images_BCHW, order_B, lam)
    else:
        images_BCHW, lam = cutmix(images_BCHW, order_B, lam, (row, column))
    one_hot_BK = (
        functional.one_hot(labels_B, num_classes) if label_sets_MK is None else label_sets_MK[labels_B]
    ).float()
    return images_BCHW, torch.lerp(one_hot_BK[order_B], one_hot_BK, lam)


def mixup(images_BCHW: Tensor, order_B: Tensor, lam: float) -> Tensor:
    """lam · images + (1 - lam) · images[order_B], float32 (arXiv:1710.09412)."""
    return torch.lerp(_reordered(images_BCHW, order_B).float(), images_BCHW.float(), lam)


def cutmix(images_BCHW: Tensor, order_B: Tensor, lam: float, centre: tuple[float, float]) -> tuple[Tensor, float]:
    """Paste a box of images[order_B] into each image (arXiv:1905.04899).

    The box has the image's aspect ratio and the fraction 1 - lam of its area; its centre is at (row, column), in [0, 1]
    of the image, and it is clipped at the border. Returns the images and the fraction of area that each image keeps.
    """
    height, width = images_BCHW.shape[-2:]
    part = (1 - lam) ** 0.5
    half_height, half_width = part * height / 2, part * width / 2
    row, column = centre[0] * height, centre[1] * width
    top, bottom = max(0, round(row - half_height)), min(height, round(row + half_height))
    left, right = max(0, round(column - half_width)), min(width, round(column + half_width))
    mixed = images_BCHW.clone()
    mixed[:, :, top:bottom, left:right] = _reordered(images_BCHW, order_B)[:, :, top:bottom, left:right]
    kept = 1 - max(0, bottom - top) * max(0, right - left) / (height * width)
    return mixed, kept


def _reordered(images_BCHW: Tensor, order_B: Tensor) -> Tensor:
    # index_select copies whole images, which is several times as fast as advanced indexing
    return images_BCHW.permute(0, 2, 3, 1).contiguous().index_select(0, order_B).permute(0, 3, 1, 2)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A sample from Beta(alpha, alpha), computed from two Gamma samples."""
    # torch.distributions accepts no generator, unlike the function that it calls. float64: a small alpha gives tiny
    # samples
    shape = torch.full((2,), alpha, dtype=torch.float64, device=generator.device)
    first, second = standard_gamma(shape, generator=generator).tolist()
    # torch's samples are above 0
    return float(first / (first + second))
