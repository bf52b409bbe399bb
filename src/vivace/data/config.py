"""How images are read and augmented: the fields of a recipe that belong to this package (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vivace.config import check_choice, check_range
from vivace.errors import ConfigError

__all__ = ["AugmentConfig", "DataConfig"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How a data set is read and stored."""

    size: int | None = None
    """Side of the network's square input, px. None: 32 for small images, 64 or 128 for larger ones."""
    store_size: int | None = None
    """Side of the square in the cache, px, at least `size`. None: `size`, or 1.15 × `size` for random crops."""
    channels: int | None = None
    """1 for greyscale, 3 for colour; other numbers for images that are kept as they are, such as 4 or 13. None: as the
    data set states; 3 for folders of pictures."""
    pixels: Literal["uint8", "uint16", "float32"] | None = None
    """dtype of images that are kept as they are, with more than 8 bits: no value is changed. None: as arrays and TIFF
    files of many channels have it, else uint8, to which files of more bits are reduced."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """How an image becomes square. crop: its central square; squash: the whole image, distorted; pad: the whole image
    with grey margins (128 in each channel)."""
    max_pixels: int = 100_000_000
    """Images with more pixels are refused; for JPEGs decoded at a lower resolution the limit is five times as high.
    Decoding an image may take 7.68 bytes of memory for each pixel of this limit."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel for normalization, on the 0..1 scale (of float32 pixels: on their own). None: that of
    pretrained weights, else measured."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, on the 0..1 scale, > 0; given together with `mean` or not at all."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    """How images are resized. None: as for the pretrained weights, else bicubic."""
    val_fraction: float = 0.1
    """Fraction of the training split to hold out for validation if the data set has no validation split, (0, 0.5]."""
    on_bad_image: Literal["auto", "refuse", "skip"] = "auto"
    """What to do with images that are corrupt, contradict each other or are in train and another split, and with rows
    of a table without a file or class. auto: leave out up to 5 % of all images (leaks only from train); skip: leave out
    any number; refuse: raise an error."""
    allow_leaks: bool = False
    """Train on images that are also in another split."""
    multi_label: bool | None = None
    """Whether an image of a manifest has a set of labels, as `Data.multi_label` says. None: as its table tells."""
    balanced_sampling: bool = False
    """Sample every class equally often, with replacement."""

    def __post_init__(self) -> None:
        check_range("data.size", self.size, 8, 2048)
        check_range("data.store_size", self.store_size, self.size or 8, 4096)
        check_choice("data.fit", self.fit, ("crop", "squash", "pad"))
        if self.interpolation is not None:
            check_choice("data.interpolation", self.interpolation, ("nearest", "bilinear", "bicubic", "lanczos"))
        check_range("data.channels", self.channels, 1, 256)
        if self.pixels is not None:
            check_choice("data.pixels", self.pixels, ("uint8", "uint16", "float32"))
        check_range("data.max_pixels", self.max_pixels, 10_000, 2_000_000_000)
        check_range("data.val_fraction", self.val_fraction, 0.0, 0.5, open_low=True)
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ConfigError(
                f"data.mean and data.std need one value per channel each: got {self.mean} and {self.std}. "
                "Give both, or neither."
            )
        for value in self.std or ():
            check_range("data.std", value, 0.0, open_low=True)
        check_choice("data.on_bad_image", self.on_bad_image, ("auto", "refuse", "skip"))


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Batched augmentations, applied on the device in the order of the fields."""

    random_resized_crop: tuple[float, float] | None = None
    """Range of the cropped area as a fraction of the image, such as [0.35, 1.0]; aspect ratio 3/4 to 4/3."""
    translate: int = 0
    """Largest shift in px, with reflection padding; 0: none."""
    flip: Literal["none", "random", "alternating"] = "none"
    """Horizontal flips. random: with probability 1/2; alternating: flipped in every other epoch, starting at random
    (arXiv:2404.00498)."""
    trivial_augment: bool = False
    """One random operation of random strength per image (arXiv:2103.10158)."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation, [0, 1]."""
    mix: Literal["none", "augmix", "prime"] = "none"
    """Mix each image with three chains of random operations, for accuracy under corruptions. augmix: turns, shears,
    shifts and tones (arXiv:1912.02781); prime: random smooth filters, colours and distortions (after
    arXiv:2112.13547). None of their operations is a corruption that `vivace evaluate --corruptions` measures."""
    cutout: int = 0
    """Side of the blanked square, px (arXiv:1708.04552); 0: none."""
    mixup: float = 0.0
    """Alpha of the Beta distribution of mixup (arXiv:1710.09412); 0: none."""
    cutmix: float = 0.0
    """Alpha of the Beta distribution of cutmix (arXiv:1905.04899); 0: none. If mixup is set too, one of them is chosen
    at random for each batch."""
    own: str | None = None
    """Name and hash of an augmentation of yours, which `vivace.train(..., augment=function)` applies after cutout and
    before mixup; set by it. A recipe with one needs the function again: nothing is ever imported by its name."""
    start_size: int | None = None
    """Side of the images at the start of training, px; it grows to the full size (progressive resizing).
    None: full size from the start."""
    full_size_from: float = 0.6
    """Fraction of the run after which images have their full size, (0, 1]."""

    def __post_init__(self) -> None:
        if self.random_resized_crop is not None:
            low, high = self.random_resized_crop
            check_range("augment.random_resized_crop[0]", low, 0.0, high, open_low=True)
            check_range("augment.random_resized_crop[1]", high, low, 1.0)
        check_range("augment.translate", self.translate, 0, 512)
        check_choice("augment.flip", self.flip, ("none", "random", "alternating"))
        check_range("augment.color_jitter", self.color_jitter, 0.0, 1.0)
        check_choice("augment.mix", self.mix, ("none", "augmix", "prime"))
        check_range("augment.cutout", self.cutout, 0, 2048)
        check_range("augment.mixup", self.mixup, 0.0, 100.0)
        check_range("augment.cutmix", self.cutmix, 0.0, 100.0)
        check_range("augment.start_size", self.start_size, 8, 2048)
        check_range("augment.full_size_from", self.full_size_from, 0.0, 1.0, open_low=True)
