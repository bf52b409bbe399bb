"""`Augment` composes the batched augmentations of an `AugmentConfig`, on the device of the images.

images_BCHW are uint8 or float32 on the 0..255 scale; images that are kept as they are (`decoding.raw`) are float32 or
uint8 on their own scale, and what knows only colours of 8 bits is left out of their recipes. Outputs have the same
dtype (only mixup and an augmentation of the user's give float32) and channels_last strides. All random numbers come
from the given generator, drawn for the whole batch at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vivace.config import check_range
from vivace.data.augmentation.chains import MIXTURES, mix_chains
from vivace.data.augmentation.color import color_jitter
from vivace.data.augmentation.crops import crop, crop_boxes, resized_crop
from vivace.data.augmentation.mixing import mix
from vivace.data.augmentation.own import OwnAugmentation
from vivace.data.augmentation.trivial_augment import trivial_augment
from vivace.data.config import AugmentConfig

__all__ = ["Augment", "alternating_flips", "cutout", "random_crop"]

# the middle of 0..255, which is near zero after normalization, so that a blank square carries no signal
CUTOUT_VALUE = 128
# px between consecutive image sizes in progressive resizing
SIZE_STEP = 4


class Augment:
    """Applies an AugmentConfig: images at the stored size → images at the network's size, and targets.

    Raises ConfigError if `translate` is not below `size`, since reflection padding is limited by the image, or if
    `start_size` is above `size`. own: an augmentation of the user's, which comes before mixup and cutmix. fill: the
    value of blanked pixels, [C]; None: 128.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        size: int,
        num_classes: int,
        seed: int = 0,
        own: OwnAugmentation | None = None,
        fill: Tensor | None = None,
    ) -> None:
        check_range("augment.translate", config.translate, 0, size - 1)
        check_range("augment.start_size", config.start_size, 8, size)
        self.config, self.size, self.num_classes, self.seed, self.own = config, size, num_classes, seed, own
        self.fill_C = fill
        self.label_sets_MK: Tensor | None = None
        """float32, where labels are the numbers of its rows; None: labels are classes."""

    def __call__(
        self,
        images_BCHW: Tensor,
        labels_B: Tensor,
        indices_B: Tensor,
        *,
        times_seen: int | Tensor,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """(images [B, C, S, S], targets) of images_BCHW, uint8 at the stored size; S is `size_at(progress)`.

        indices_B: int64, positions in the data set. times_seen: how often the run has seen each image before, one
        number or int [B]; with indices_B it determines the alternating flips. progress: fraction of the run that is
        done, [0, 1]; it determines the size. Targets are labels_B, int64, or soft labels, float32 [B, K], with mixup or
        cutmix. The given images are never modified; without any augmentation they are returned themselves.
        """
        config = self.config
        size = self.size_at(progress)
        images_BCHW = self._place(images_BCHW, self._flips(indices_B, times_seen, generator), size, generator)
        if config.trivial_augment:
            images_BCHW = trivial_augment(images_BCHW, generator)
        if config.color_jitter:
            images_BCHW = color_jitter(images_BCHW, config.color_jitter, generator)
        if config.mix != "none":
            images_BCHW = mix_chains(images_BCHW, MIXTURES[config.mix], generator)
        if config.cutout:
            # the same fraction of the image at every size
            side = max(1, round(config.cutout * images_BCHW.shape[-1] / self.size))
            images_BCHW = cutout(images_BCHW, side, generator, self.fill_C)
        if self.own is not None:
            images_BCHW = self.own(images_BCHW, generator)
        if config.mixup or config.cutmix:
            return mix(
                images_BCHW,
                labels_B,
                num_classes=self.num_classes,
                label_sets_MK=self.label_sets_MK,
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                generator=generator,
            )
        return images_BCHW, labels_B

    def size_at(self, progress: float) -> int:
        """Side of the images, px, when the fraction `progress` of the run is done; grows in steps of 4 px."""
        start, fraction = self.config.start_size, progress / self.config.full_size_from
        if start is None or fraction >= 1:
            return self.size
        return min(self.size, start + SIZE_STEP * int((self.size - start) / SIZE_STEP * fraction + 0.5))

    def _place(self, images_BCHW: Tensor, flips_B: Tensor | None, size: int, generator: torch.Generator) -> Tensor:
        """Crop, flip, shift and resize the images to `size`."""
        config = self.config
        if config.random_resized_crop is not None:
            boxes_B4 = crop_boxes(
                len(images_BCHW), images_BCHW.shape[-2:], config.random_resized_crop, generator, images_BCHW.device
            )
            # shifts are in px of the full size, so with them the crop must be made at full size
            crop_size = self.size if config.translate else size
            images_BCHW = resized_crop(images_BCHW, boxes_B4, crop_size, flips_B)
            flips_B = None
        if flips_B is not None or config.translate or images_BCHW.shape[-2:] not in ((self.size,) * 2, (size,) * 2):
            images_BCHW = random_crop(images_BCHW, self.size, generator, translate=config.translate, flips_B=flips_B)
        if images_BCHW.shape[-1] == size:
            return images_BCHW
        return functional.interpolate(images_BCHW, (size, size), mode="bilinear", antialias=True)

    def _flips(self, indices_B: Tensor, times_seen: int | Tensor, generator: torch.Generator) -> Tensor | None:
        if self.config.flip == "alternating":
            return alternating_flips(indices_B, times_seen, self.seed)
        if self.config.flip == "random":
            return torch.rand(len(indices_B), generator=generator, device=indices_B.device) < 0.5
        return None


def alternating_flips(indices_B: Tensor, times_seen: int | Tensor, seed: int = 0) -> Tensor:
    """Which images to flip, bool [B]: every other time that an image is seen, starting at random per image.

    Source: arXiv:2404.00498, which alternates by epochs; here an epoch may contain an image twice.
    """
    return (_hash_bits(indices_B, seed) + times_seen) % 2 == 1


def _hash_bits(values: Tensor, seed: int) -> Tensor:
    """A pseudorandom bit per value, 0 or 1, that depends only on the value and the seed."""
    mask = 0xFFFFFFFF
    # lowbias32 of Wellons' hash prospector; a plain multiplication would correlate neighbours and seeds
    mixed = values & mask
    for start in (0, seed & mask):
        mixed = mixed ^ start
        mixed = ((mixed ^ (mixed >> 16)) * 0x7FEB352D) & mask
        mixed = ((mixed ^ (mixed >> 15)) * 0x846CA68B) & mask
        mixed = mixed ^ (mixed >> 16)
    return mixed & 1


def random_crop(
    images_BCHW: Tensor,
    size: int,
    generator: torch.Generator,
    *,
    translate: int = 0,
    flips_B: Tensor | None = None,
) -> Tensor:
    """Crops of `size` × `size` at random positions, up to `translate` px outside the image, with reflection padding.

    Row and column offsets are independent and uniform from -translate to (side - size) + translate.
    flips_B: bool [B], which crops to flip horizontally.
    """
    count, device = len(images_BCHW), images_BCHW.device
    tops_B, lefts_B = (
        torch.randint(-translate, side - size + translate + 1, (count,), generator=generator, device=device)
        for side in images_BCHW.shape[-2:]
    )
    return crop(images_BCHW, tops_B, lefts_B, size, flips_B)


def cutout(images_BCHW: Tensor, side: int, generator: torch.Generator, fill_C: Tensor | None = None) -> Tensor:
    """Blank a square of `side` px in each image; its centre is uniform, and it is clipped at the border.

    fill_C: the value of blanked pixels; None: CUTOUT_VALUE.

    Source: arXiv:1708.04552.
    """
    count, channels, height, width = images_BCHW.shape
    device = images_BCHW.device
    steps = torch.arange(side, device=device) - side // 2
    rows_BS = torch.randint(0, height, (count, 1), generator=generator, device=device) + steps
    columns_BS = torch.randint(0, width, (count, 1), generator=generator, device=device) + steps
    # the centre is inside the image, so the border row that an outer row is clamped to is part of the square anyway
    rows_BS, columns_BS = rows_BS.clamp_(0, height - 1), columns_BS.clamp_(0, width - 1)
    first_rows = torch.arange(0, count * height, height, device=device)[:, None]
    places_BSS = ((first_rows + rows_BS) * width)[:, :, None] + columns_BS[:, None, :]
    blanked = images_BCHW.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    # writes only the blanked pixels, which is faster than a mask over all
    places_P, pixels_PC = places_BSS.view(-1), blanked.view(-1, channels)
    if fill_C is None:
        pixels_PC.index_fill_(0, places_P, CUTOUT_VALUE)
    else:
        pixels_PC.index_copy_(0, places_P, fill_C.to(pixels_PC).expand(len(places_P), channels))
    return blanked.permute(0, 3, 1, 2)
