"""`Preprocess`: the only definition of how an image becomes pixels, for training, evaluation and prediction.

An image is rotated upright by its EXIF or XMP orientation, converted to 8-bit greyscale or RGB, cropped to its central
square (or squashed or padded to a square), resized to `store_size` and stored as uint8. The network sees the central
`size` × `size` pixels of that. Images of 16 bits, of floats or of other channels are cropped and resized too, and
nothing else (`decoding.raw`); the network sees them as float32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from vivace.config import check_choice, check_range, from_dict, to_dict
from vivace.data.arrays import array_of, is_tensor, picture_of
from vivace.data.decoding.decode import MAX_PIXELS, Picture, PillowGuard, check_size, decoding, load_opened, shown
from vivace.data.decoding.picture import UPRIGHT
from vivace.data.decoding.raw import WHITE, arranged, check_raw, is_raw, raw_square
from vivace.data.decoding.raw_files import raw_decoding
from vivace.data.decoding.square import FITS, RESAMPLING, kept_box, to_square
from vivace.data.decoding.tones import eight_bit
from vivace.errors import ConfigError, ImageError
from vivace.files import canonical_json
from vivace.kernels.resize import resize_square

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Preprocess"]

# increase this when stored pixels change: older caches are then rebuilt
PIXEL_VERSION = 3
EXIF_ORIENTATION = 0x0112
MAX_CHANNELS = 256
DECODES = ("fine", "coarse")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes pixels, and how these are normalized."""

    size: int
    """Side of the network's square input, px."""
    store_size: int
    """Side of the stored square, px, >= size; the margin is for random crops."""
    channels: int = 3
    """1 for greyscale (ITU-R 601 luma), 3 for RGB; of uint16 and float32, and other numbers, what the images have."""
    pixels: Literal["uint8", "uint16", "float32"] = "uint8"
    """dtype of stored pixels. uint16 and float32: those of the images, of which no value is changed."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """crop: the central square; squash: the whole image, distorted; pad: the whole image with grey margins (128 in each
    channel)."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, on the 0..1 scale; of float32 pixels on their own."""
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    """Per channel, on the scale of `mean`: the network sees (pixel / white - mean) / std."""
    max_pixels: int = MAX_PIXELS
    """Images with more pixels are refused; JPEGs decoded at a lower resolution may have five times as many."""
    decode: Literal["fine", "coarse"] = dataclasses.field(default="fine", metadata={"omit_default": True})
    """How low the resolution may be that a JPEG is decoded at: fine, twice `store_size`; coarse, `store_size` itself,
    which takes less time and changes pixels. Bundles are trained with fine; predictions may ask for coarse."""

    def __post_init__(self) -> None:
        check_range("preprocess.size", self.size, 1, 4096)
        check_range("preprocess.store_size", self.store_size, self.size, 4096)
        check_choice("preprocess.fit", self.fit, FITS)
        check_range("preprocess.channels", self.channels, 1, MAX_CHANNELS)
        check_choice("preprocess.pixels", self.pixels, tuple(WHITE))
        check_range("preprocess.max_pixels", self.max_pixels, 10_000, 2_000_000_000)
        check_choice("preprocess.interpolation", self.interpolation, tuple(RESAMPLING))
        check_choice("preprocess.decode", self.decode, DECODES)
        if self.decode != "fine" and self.is_raw:
            raise ConfigError(
                f"`decode='coarse'` is for pictures of 8 bits: got {self.channels} channels of {self.pixels}, which "
                "are kept as they are. Leave it out."
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ConfigError(
                f"preprocess.mean and std need {self.channels} values: got {len(self.mean)} and {len(self.std)}. "
                "Give one per channel."
            )
        if any(value <= 0 for value in self.std):
            raise ConfigError(f"preprocess.std must be positive: got {self.std}. Measure it on the training images.")

    @property
    def is_raw(self) -> bool:
        """Whether images are kept as they are: no grey or RGB of 8 bits."""
        return is_raw(self.pixels, self.channels)

    @property
    def white(self) -> float:
        """The pixel value that is 1 on the scale of mean and std: 255 of uint8, 65535 of uint16, 1 of float32."""
        return WHITE[self.pixels]

    @property
    def dtype(self) -> str:
        """Of the pixels that the network sees: uint8, or float32 of uint16 and float32 with the same values."""
        return "uint8" if self.pixels == "uint8" else "float32"

    def load(self, source: Path | str | bytes | Image.Image | np.ndarray | Tensor) -> np.ndarray:
        """The pixels that the network sees, [size, size, channels] of `dtype`.

        source: a path, the bytes of an encoded file, a Pillow image, an array [H, W] or [H, W, C], or a tensor
        [C, H, W]; see `vivace.data.arrays` for dtypes and ranges. All give the same pixels, with two exceptions where
        a path or bytes are more exact: a JPEG at least four times as large as `store_size` (twice, where `decode` is
        coarse) is decoded at a lower resolution, so its pixels differ slightly from those of the fully decoded image;
        and Pillow drops information from files with more than 8 bits per channel. Images that are kept as they are may
        have their channels first in an array too, and must have the dtype of `pixels`.
        Raises ImageError if it can't be decoded, or for an array of another shape, dtype or range.
        """
        if self.is_raw:
            return self._load_raw(source)
        array: Any = array_of(source) if is_tensor(source) else source
        if isinstance(array, np.ndarray):
            if array.ndim in (2, 3) and math.prod(array.shape[:2]) > self.max_pixels:
                # before anything is copied: a broadcast array may stand for terabytes
                check_size(*array.shape[1::-1], max_pixels=self.max_pixels)
            pixels = picture_of(array)
            check_size(*array.shape[1::-1], max_pixels=self.max_pixels)
            return self.view(self.store(pixels))
        if isinstance(source, Image.Image):
            load_opened(source, max_pixels=self.max_pixels)
            return self.view(self.store(source))
        name = "the image" if isinstance(array, bytes) else str(array)
        with self.decoding(array) as (_, picture):
            return self.view(self.store(picture, name=name))

    def _load_raw(self, source: Any) -> np.ndarray:
        if isinstance(source, Image.Image):
            load_opened(source, max_pixels=self.max_pixels)
            return self.view(self.store(np.asarray(source)))
        if is_tensor(source) or isinstance(source, np.ndarray):
            array = array_of(source, self.channels) if is_tensor(source) else source
            return self.view(self.store(array))
        with self.decoding(source) as (_, picture):
            return self.view(self.store(picture, name="the image" if isinstance(source, bytes) else str(source)))

    def decoding(self, source: Path | str | bytes) -> contextlib.AbstractContextManager[tuple[bytes, Picture]]:
        """(bytes, decoded picture) of an image file, decoded at a sufficient resolution. Raises ImageError."""
        if self.is_raw:
            return raw_decoding(source, max_pixels=self.max_pixels, side=self.store_size)
        # what is decoded has at least twice this size
        side = self.store_size if self.decode == "fine" else -(-self.store_size // 2)
        return decoding(source, max_pixels=self.max_pixels, draft_size=side)

    def store(self, image: Picture | Image.Image | np.ndarray, *, name: str = "the image") -> np.ndarray:
        """The stored pixels of an image, [store_size, store_size, channels] of `pixels`; `name` is used in messages.

        image: a decoded picture, a Pillow image, or uint8 [H, W], [H, W, 1] or [H, W, 3]; where images are kept as they
        are, a picture or an array [H, W, C] or [C, H, W] of `pixels`.
        Raises ImageError with the problem "truncated", or "not_convertible" for a colour space unknown to Pillow.
        """
        pixels = image.pixels if isinstance(image, Picture) else image
        if self.is_raw:
            return self._stored_raw(np.asarray(pixels), shown(name))
        if isinstance(pixels, np.ndarray):
            stored = self._stored_array(pixels)
            if stored is not None:
                return stored
        with PillowGuard():
            try:
                if isinstance(pixels, Image.Image) and image is pixels:
                    pixels = _upright(pixels)
                return to_square(pixels, self.store_size, self.channels, self.fit, self.interpolation)
            except OSError as error:
                raise ImageError(
                    f"the image is damaged: {shown(name)} ({error}). Restore it from a copy, or leave it out.",
                    problem="truncated",
                ) from None
            except ValueError as error:
                raise ImageError(
                    f"the colours can't be converted: {shown(name)} is {getattr(pixels, 'mode', 'an array')} ({error})."
                    " Save it as RGB.",
                    problem="not_convertible",
                ) from None

    def _stored_array(self, pixels: np.ndarray) -> np.ndarray | None:
        """The same pixels by a faster path, or None: no resizing if the size is right, or our resizing kernel."""
        side = self.store_size
        if pixels.shape == (side, side, self.channels):
            return pixels
        if pixels.shape[2:] != (self.channels,) or self.fit == "pad":
            return None
        box = kept_box(pixels.shape[1], pixels.shape[0], self.fit)
        return resize_square(pixels, box, side, self.interpolation)

    def _stored_raw(self, array: np.ndarray, name: str) -> np.ndarray:
        array_HWC = arranged(array, self.channels)
        # before anything is copied: a broadcast array may stand for terabytes
        check_size(*array_HWC.shape[1::-1][:2], max_pixels=self.max_pixels)
        array_HWC = check_raw(array_HWC, self.pixels, self.channels, name)
        return raw_square(array_HWC, self.store_size, self.fit, self.interpolation)

    def view(self, stored: np.ndarray) -> np.ndarray:
        """The central [..., size, size, C] of stored pixels [..., store_size, store_size, C], as `dtype`.

        Of uint8 and float32 a view, not a copy.
        """
        margin = (self.store_size - self.size) // 2
        seen = stored[..., margin : margin + self.size, margin : margin + self.size, :]
        return seen if seen.dtype != np.uint16 else seen.astype(np.float32)

    def resized(self, size: int) -> Preprocess:
        """The Preprocess for another input size, px, with the same relative margin for random crops."""
        return dataclasses.replace(self, size=size, store_size=round(self.store_size * size / self.size))

    def fingerprint(self) -> str:
        """32 hexadecimal digits that change whenever the stored pixels would."""
        facts: list[Any] = [
            PIXEL_VERSION,
            self.store_size,
            self.channels,
            self.fit,
            self.interpolation,
            self.max_pixels,
        ]
        facts += [] if self.pixels == "uint8" else [self.pixels]
        facts += [] if self.decode == "fine" else [self.decode]
        return hashlib.blake2b(canonical_json(facts), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`. Raises ConfigError for unknown keys or wrong types."""
        return from_dict(cls, values, where="preprocess")


def _upright(image: Image.Image) -> Image.Image:
    """A Pillow image as a viewer shows it, in 8 bits per channel; a corrupt EXIF block is ignored."""
    # before load() a lazily opened image has neither pixels nor an EXIF block that follows them in a PNG
    image.load()
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        # Pillow's EXIF parser raises all kinds of errors: SyntaxError, struct.error, KeyError …
        orientation = 1
    # not ImageOps.exif_transpose: it also rewrites the block, and fails if another tag is corrupt
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    image = image if method is None else image.transpose(method)
    return eight_bit(image)[0] if image.mode.startswith("I") or image.mode == "F" else image
