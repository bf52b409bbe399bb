"""Augmentation in batches, on the device: pure functions of images and a generator, and their composition.

images_BCHW are uint8 or float32 on the 0..255 scale; what comes out has the same type (mixup alone gives float32) and
channels_last strides. Randomness is drawn from the generator alone, for all images at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vivace.config import check_range
from vivace.data.augmentation.color import color_jitter
from vivace.data.augmentation.crops import crop, crop_boxes, resized_crop
from vivace.data.augmentation.mixing import mix
from vivace.data.augmentation.trivial_augment import trivial_augment
from vivace.data.config import AugmentConfig

__all__ = ["Augment", "alternating_flips", "cutout", "random_crop"]

# the middle of 0..255: near zero after normalisation, so that a blank square says nothing
CUTOUT_VALUE = 128
# px between one size of the images and the next
SIZE_STEP = 4


class Augment:
    """An AugmentConfig as a function: images at the stored size → images at the network's size, and targets.

    Raises ConfigError if `translate` is not below `size`, for a reflection is no longer than its image, and if
    `start_size` is above it.
    """

    def __init__(self, config: AugmentConfig, *, size: int, num_classes: int, seed: int = 0) -> None:
        check_range("augment.translate", config.translate, 0, size - 1)
        check_range("augment.start_size", config.start_size, 8, size)
        self.config, self.size, self.num_classes, self.seed = config, size, num_classes, seed

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
        """images_BCHW uint8 at the stored size → (images [B, C, S, S], targets); S is `size_at(progress)`.

        indices_B: positions in the data set; times_seen: how often the run has seen each of the images before, one
        number or int [B]. Both decide the alternating flips. progress: share of the run that is done, [0, 1], which
        decides the size. Targets are labels_B int64, or soft
        float32 [B, K] with mixup or cutmix. The images given are never changed; without any augmentation they are
        what comes out.
        """
        config = self.config
        size = self.size_at(progress)
        images_BCHW = self._place(images_BCHW, self._flips(indices_B, times_seen, generator), size, generator)
        if config.trivial_augment:
            images_BCHW = trivial_augment(images_BCHW, generator)
        if config.color_jitter:
            images_BCHW = color_jitter(images_BCHW, config.color_jitter, generator)
        if config.cutout:
            # an equal share of the image at every size
            side = max(1, round(config.cutout * images_BCHW.shape[-1] / self.size))
            images_BCHW = cutout(images_BCHW, side, generator)
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

    def size_at(self, progress: float) -> int:
        """Side of the images when the share `progress` of the run is done, px: from `start_size` in steps of 4."""
        start, share = self.config.start_size, progress / self.config.full_size_from
        if start is None or share >= 1:
            return self.size
        return min(self.size, start + SIZE_STEP * int((self.size - start) / SIZE_STEP * share + 0.5))

    def _place(self, images_BCHW: Tensor, flips_B: Tensor | None, size: int, generator: torch.Generator) -> Tensor:
        """What is seen of each image, which way round, and how large."""
        config = self.config
        if config.random_resized_crop is not None:
            boxes_B4 = crop_boxes(
                len(images_BCHW), images_BCHW.shape[-2:], config.random_resized_crop, generator, images_BCHW.device
            )
            # shifts are given in px of the full size: with them the crop can't be made at the smaller one
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
    """Which images to mirror, bool [B]: a random half of those seen an even number of times, the others of the rest.

    Of two times that an image is seen it is once in the mirror (arXiv:2404.00498, by epochs there; here an epoch may
    hold an image twice).
    """
    return (_hash_bits(indices_B, seed) + times_seen) % 2 == 1


def _hash_bits(values: Tensor, seed: int) -> Tensor:
    """A bit per value, 0 or 1, that looks like a coin and depends on the value and the seed alone."""
    mask = 0xFFFFFFFF
    # lowbias32 of Wellons' hash prospector: a plain multiplication would give neighbours and seeds related bits
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
    """Windows of `size` × `size` at random places, which may reach `translate` px out of the image: reflected there.

    Every offset from -translate to (side - size) + translate is equally likely, rows and columns apart.
    flips_B: bool [B], which windows come out mirrored.
    """
    count, device = len(images_BCHW), images_BCHW.device
    tops_B, lefts_B = (
        torch.randint(-translate, side - size + translate + 1, (count,), generator=generator, device=device)
        for side in images_BCHW.shape[-2:]
    )
    return crop(images_BCHW, tops_B, lefts_B, size, flips_B)


def cutout(images_BCHW: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A square of `side` px blanked in each image, its centre anywhere, cut off at the border (arXiv:1708.04552)."""
    count, channels, height, width = images_BCHW.shape
    device = images_BCHW.device
    steps = torch.arange(side, device=device) - side // 2
    rows_BS = torch.randint(0, height, (count, 1), generator=generator, device=device) + steps
    columns_BS = torch.randint(0, width, (count, 1), generator=generator, device=device) + steps
    # the centre is inside, so the border row that an outer one is moved to belongs to the square anyway
    rows_BS, columns_BS = rows_BS.clamp_(0, height - 1), columns_BS.clamp_(0, width - 1)
    first_rows = torch.arange(0, count * height, height, device=device)[:, None]
    places_BSS = ((first_rows + rows_BS) * width)[:, :, None] + columns_BS[:, None, :]
    blanked = images_BCHW.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    # only the blanked pixels are touched: a mask over all takes four times as long
    blanked.view(-1, channels).index_fill_(0, places_BSS.view(-1), CUTOUT_VALUE)
    return blanked.permute(0, 3, 1, 2)
