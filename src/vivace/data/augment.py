"""Augmentation in batches, on the device: pure functions of images and a generator, and their composition.

images_BCHW are uint8 or float32 on the 0..255 scale; what comes out has the same type. Randomness is drawn from the
generator alone, for all images at once; no function loops over images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vivace.data.config import AugmentConfig
from vivace.data.mixing import mix
from vivace.data.trivial_augment import trivial_augment

__all__ = [
    "Augment",
    "alternating_flips",
    "color_jitter",
    "crop",
    "crop_boxes",
    "cutout",
    "random_resized_crop",
    "resized_crop",
]

ASPECT_RANGE = (3 / 4, 4 / 3)
# the middle of 0..255: near zero after normalisation, so that a blank square says nothing
CUTOUT_VALUE = 128


class Augment:
    """An AugmentConfig as a function: images at the stored size → images at the network's size, and targets."""

    def __init__(self, config: AugmentConfig, *, size: int, num_classes: int, seed: int = 0) -> None:
        self.config, self.size, self.num_classes, self.seed = config, size, num_classes, seed

    def __call__(
        self,
        images_BCHW: Tensor,
        labels_B: Tensor,
        indices_B: Tensor,
        *,
        epoch: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """images_BCHW uint8 at the stored size → (images [B, C, size, size], targets).

        indices_B: positions in the data set, which decide the alternating flips. Targets are labels_B int64, or soft
        float32 [B, K] with mixup or cutmix.
        """
        config = self.config
        flips_B = self._flips(indices_B, epoch, generator)
        if config.random_resized_crop is not None:
            boxes_B4 = crop_boxes(
                len(images_BCHW), images_BCHW.shape[-2:], config.random_resized_crop, generator, images_BCHW.device
            )
            images_BCHW = resized_crop(images_BCHW, boxes_B4, self.size, flips_B)
        else:
            tops_B, lefts_B = self._offsets(images_BCHW, generator)
            images_BCHW = crop(images_BCHW, tops_B, lefts_B, self.size, flips_B)
        if config.trivial_augment:
            images_BCHW = trivial_augment(images_BCHW, generator)
        if config.color_jitter:
            images_BCHW = color_jitter(images_BCHW, config.color_jitter, generator)
        if config.cutout:
            images_BCHW = cutout(images_BCHW, config.cutout, generator)
        if config.mixup or config.cutmix:
            return mix(
                images_BCHW,
                labels_B,
                num_classes=self.num_classes,
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                generator=generator,
            )
        return images_BCHW, labels_B

    def _flips(self, indices_B: Tensor, epoch: int, generator: torch.Generator) -> Tensor | None:
        if self.config.flip == "alternating":
            return alternating_flips(indices_B, epoch, self.seed)
        if self.config.flip == "random":
            return torch.rand(len(indices_B), generator=generator, device=indices_B.device) < 0.5
        return None

    def _offsets(self, images_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where the window starts: anywhere in the stored image when that is larger, and shifted by `translate`."""
        count, device = len(images_BCHW), images_BCHW.device
        offsets = []
        for side in images_BCHW.shape[-2:]:
            room, shift = side - self.size, self.config.translate
            low, high = -shift, room + shift
            offsets.append(torch.randint(low, high + 1, (count,), generator=generator, device=device))
        return offsets[0], offsets[1]


def alternating_flips(indices_B: Tensor, epoch: int, seed: int = 0) -> Tensor:
    """Which images to mirror, bool [B]: a fixed half in even epochs, the other half in odd ones.

    Over two epochs every image is seen both ways exactly once (arXiv:2404.00498).
    """
    # a multiplicative hash of the position: the low bit of its high half is as good as a coin
    mixed = (indices_B + 1 + seed * 7919) * 2654435761
    coin = (mixed >> 16) & 1
    return (coin + epoch) % 2 == 1


def crop(images_BCHW: Tensor, tops_B: Tensor, lefts_B: Tensor, size: int, flips_B: Tensor | None = None) -> Tensor:
    """Windows of `size` × `size` whose corner may lie outside: there the image continues as its reflection.

    flips_B: bool [B], which windows come out mirrored. The gathering is one pass for crop, shift and mirror.
    """
    height, width = images_BCHW.shape[-2:]
    steps = torch.arange(size, device=images_BCHW.device)
    rows_BS = _reflect(tops_B[:, None] + steps, height)
    columns_BS = lefts_B[:, None] + steps
    if flips_B is not None:
        columns_BS = torch.where(flips_B[:, None], columns_BS.flip(1), columns_BS)
    columns_BS = _reflect(columns_BS, width)
    images_BHWC = images_BCHW.permute(0, 2, 3, 1).contiguous()
    count, _, _, channels = images_BHWC.shape
    # positions in the flattened pixels: one index per pixel, its channels are copied together
    places = (torch.arange(count, device=steps.device)[:, None] * height + rows_BS)[:, :, None] * width
    places_P = (places + columns_BS[:, None, :]).reshape(-1)
    pixels_PC = images_BHWC.view(-1, channels).index_select(0, places_P)
    return pixels_PC.view(count, size, size, channels).permute(0, 3, 1, 2)


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Positions outside 0..size-1 as their reflection, the border itself not repeated."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def crop_boxes(
    count: int,
    image_size: tuple[int, int] | torch.Size,
    area_range: tuple[float, float],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random boxes (top, left, height, width) inside the image, float [B, 4].

    The area is uniform in `area_range` as a share of the image, the logarithm of the aspect uniform between 3/4 and
    4/3 (the Inception crop, arXiv:1409.4842); a side that would not fit is cut to the image.
    """
    height, width = image_size
    draws = torch.rand(4, count, generator=generator, device=device)
    low, high = area_range
    areas_B = (low + (high - low) * draws[0]) * (height * width)
    log_low, log_high = math.log(ASPECT_RANGE[0]), math.log(ASPECT_RANGE[1])
    aspects_B = torch.exp(log_low + (log_high - log_low) * draws[1])
    widths_B = torch.sqrt(areas_B * aspects_B).clamp(max=float(width))
    heights_B = torch.sqrt(areas_B / aspects_B).clamp(max=float(height))
    tops_B = draws[2] * (height - heights_B)
    lefts_B = draws[3] * (width - widths_B)
    return torch.stack([tops_B, lefts_B, heights_B, widths_B], dim=1)


def random_resized_crop(
    images_BCHW: Tensor, size: int, area_range: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """A random box of each image, resized to `size` × `size`."""
    boxes_B4 = crop_boxes(len(images_BCHW), images_BCHW.shape[-2:], area_range, generator, images_BCHW.device)
    return resized_crop(images_BCHW, boxes_B4, size)


def resized_crop(images_BCHW: Tensor, boxes_B4: Tensor, size: int, flips_B: Tensor | None = None) -> Tensor:
    """Boxes (top, left, height, width) of the images resized to `size` × `size`, bilinear with antialiasing.

    The resize is separable: two batched matrix products with a weight matrix per image and axis, which a CPU and a GPU
    do at full speed; mirroring is turning one of the matrices round.
    """
    tops_B, lefts_B, heights_B, widths_B = boxes_B4.unbind(1)
    rows_BSH = _resize_weights(tops_B, heights_B, size, images_BCHW.shape[-2])
    columns_BSW = _resize_weights(lefts_B, widths_B, size, images_BCHW.shape[-1])
    if flips_B is not None:
        columns_BSW = torch.where(flips_B[:, None, None], columns_BSW.flip(1), columns_BSW)
    count, channels, height, width = images_BCHW.shape
    # columns and channels side by side, then rows and channels: both products are wide, which is what makes them fast
    pixels = images_BCHW.permute(0, 2, 3, 1).float().reshape(count, height, width * channels)
    low = torch.bmm(rows_BSH, pixels).view(count, size, width, channels)
    turned = low.transpose(1, 2).reshape(count, width, size * channels)
    resized = torch.bmm(columns_BSW, turned).view(count, size, size, channels)
    if images_BCHW.dtype == torch.uint8:
        # the weights sum to 1: nothing can leave 0..255 but by rounding
        resized = resized.add_(0.5).clamp_(0, 255).to(torch.uint8)
    return resized.transpose(1, 2).contiguous().permute(0, 3, 1, 2)


def _resize_weights(starts_B: Tensor, lengths_B: Tensor, size: int, image_size: int) -> Tensor:
    """Weights [B, size, image_size] of a triangle filter, as wide as the reduction asks; every row sums to 1."""
    scale_B11 = (lengths_B / size)[:, None, None]
    outputs = torch.arange(size, device=starts_B.device, dtype=torch.float32)[None, :, None]
    inputs = torch.arange(image_size, device=starts_B.device, dtype=torch.float32)[None, None, :]
    centres = starts_B[:, None, None] + (outputs + 0.5) * scale_B11
    reach = scale_B11.clamp(min=1.0)
    weights = (1 - ((inputs + 0.5 - centres) / reach).abs()).clamp_(min=0)
    # pixels beyond the box do not count, as when the box is cut out first
    first = starts_B[:, None, None].floor()
    last = (starts_B + lengths_B)[:, None, None].ceil()
    weights = weights * ((inputs >= first) & (inputs < last))
    return weights / weights.sum(2, keepdim=True).clamp_(min=1e-8)


def color_jitter(images_BCHW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation, in this order, each times a factor uniform in 1 ± strength."""
    count, device = len(images_BCHW), images_BCHW.device
    factors = 1 + strength * (2 * torch.rand(3, count, 1, 1, 1, generator=generator, device=device) - 1)
    pixels = images_BCHW.float()
    pixels = (pixels * factors[0]).clamp_(0, 255)
    mean = _grey(pixels).mean((2, 3), keepdim=True)
    pixels = (mean + factors[1] * (pixels - mean)).clamp_(0, 255)
    grey = _grey(pixels)
    pixels = (grey + factors[2] * (pixels - grey)).clamp_(0, 255)
    return pixels.round_().to(torch.uint8) if images_BCHW.dtype == torch.uint8 else pixels


def _grey(pixels_BCHW: Tensor) -> Tensor:
    """ITU-R 601 luma, [B, 1, H, W]; grey images as they are."""
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    red, green, blue = pixels_BCHW.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def cutout(images_BCHW: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A square of `side` px blanked in each image, its centre anywhere, cut off at the border (arXiv:1708.04552)."""
    count, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    tops_B = torch.randint(0, height, (count,), generator=generator, device=device) - side // 2
    lefts_B = torch.randint(0, width, (count,), generator=generator, device=device) - side // 2
    rows = torch.arange(height, device=device)[None]
    columns = torch.arange(width, device=device)[None]
    in_rows = (rows >= tops_B[:, None]) & (rows < tops_B[:, None] + side)
    in_columns = (columns >= lefts_B[:, None]) & (columns < lefts_B[:, None] + side)
    mask = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    return images_BCHW.masked_fill(mask, CUTOUT_VALUE)
