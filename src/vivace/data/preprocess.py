"""Preprocess: the only place that says how an image becomes pixels, in training, evaluation and prediction alike.

An image is turned upright by its EXIF tag, converted to grey or RGB, cut to its central square (or squashed into one),
resized to `store_size` and kept as uint8; the network sees the central `size` × `size` of that.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from vivace.config import check_choice, check_range, from_dict, to_dict
from vivace.data.decode import PillowGuard, image_of, read_image, shown
from vivace.errors import ConfigError, ImageError
from vivace.files import canonical_json
from vivace.kernels.resize import resize_square

__all__ = ["Preprocess"]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# raised when stored pixels would come out otherwise than before: older caches are then made again
PIXEL_VERSION = 2
EXIF_ORIENTATION = 0x0112
# EXIF 2.32, tag 0x0112: how the stored picture is turned to stand upright; 1 is as it is
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DETOURS = {"LAB": "RGB", "La": "LA"}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes uint8 pixels, and how these are normalised."""

    size: int
    """Side of the network's square input, px."""
    store_size: int
    """Side of the stored square, px, >= size: random crops have room in it."""
    channels: Literal[1, 3] = 3
    """1 for grey (ITU-R 601 luma), 3 for RGB."""
    fit: Literal["crop", "squash"] = "crop"
    """crop: the central square; squash: the whole image, its aspect lost."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, on the 0..1 scale."""
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    """Per channel, on the 0..1 scale: the network sees (pixel / 255 - mean) / std."""

    def __post_init__(self) -> None:
        check_range("preprocess.size", self.size, 1, 4096)
        check_range("preprocess.store_size", self.store_size, self.size, 4096)
        check_choice("preprocess.fit", self.fit, ("crop", "squash"))
        check_choice("preprocess.interpolation", self.interpolation, tuple(RESAMPLING))
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ConfigError(
                f"preprocess.mean and std need {self.channels} values: got {len(self.mean)} and {len(self.std)}. "
                "Give one per channel."
            )
        if any(value <= 0 for value in self.std):
            raise ConfigError(f"preprocess.std must be positive: got {self.std}. Measure it on the training images.")

    def load(self, source: Path | str | bytes | Image.Image | np.ndarray) -> np.ndarray:
        """The pixels that the network sees, uint8 [size, size, channels].

        source: a path, an encoded file's bytes, a Pillow image, or uint8 [H, W] or [H, W, 1 | 3]. Paths and bytes of a
        large JPEG are decoded at a lower resolution, so that its pixels differ by a little from those of a Pillow
        image that somebody else decoded in full: give the bytes where they are at hand.
        Raises ImageError if it can't be decoded, or is another kind of array.
        """
        if isinstance(source, np.ndarray):
            return self.view(self.store(_checked(source)))
        if isinstance(source, Image.Image):
            return self.view(self.store(source))
        image = read_image(source, draft_size=self.store_size)
        return self.view(self.store(image, name="the image" if isinstance(source, bytes) else str(source)))

    def store(self, image: Image.Image | np.ndarray, *, name: str = "the image") -> np.ndarray:
        """The stored pixels of an image, uint8 [store_size, store_size, channels]; `name` is used in messages.

        image: a Pillow image, or uint8 [H, W], [H, W, 1] or [H, W, 3].
        Raises ImageError, its problem "truncated" or "not_convertible" (a colour space unknown to this Pillow).
        """
        side = self.store_size
        if isinstance(image, np.ndarray):
            if image.shape == (side, side, self.channels):
                return image
            if image.shape[2:] == (self.channels,):
                # the same pixels as below, faster, where that was asked for
                box = self._box(image.shape[1], image.shape[0])
                resized = resize_square(image, box, side, self.interpolation)
                if resized is not None:
                    return resized
            image = image_of(image)
        with PillowGuard():
            try:
                # an image that was only opened has neither pixels yet nor the EXIF block that follows them in a PNG
                image.load()
            except OSError as error:
                raise ImageError(
                    f"the image is damaged: {shown(name)} ({error}). Restore or remove it.", problem="truncated"
                ) from None
            try:
                image = _converted(_upright(image), "L" if self.channels == 1 else "RGB")
            except ValueError as error:
                raise ImageError(
                    f"the colours can't be converted: {shown(name)} is {image.mode} ({error}). Save it as RGB.",
                    problem="not_convertible",
                ) from None
            if image.size != (side, side):
                # cut and resized in one go: no second rounding
                image = image.resize((side, side), RESAMPLING[self.interpolation], box=self._box(*image.size))
        pixels = np.asarray(image)
        return pixels[..., None] if self.channels == 1 else pixels

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """What is kept of an image: left, top, right, bottom."""
        if self.fit == "squash":
            return 0, 0, width, height
        square = min(width, height)
        # whole pixels: a square that has the stored size already is cut, not blurred by half a pixel
        left, top = (width - square) // 2, (height - square) // 2
        return left, top, left + square, top + square

    def view(self, stored: np.ndarray) -> np.ndarray:
        """The central [..., size, size, C] of stored pixels [..., store_size, store_size, C]; a view, not a copy."""
        margin = (self.store_size - self.size) // 2
        return stored[..., margin : margin + self.size, margin : margin + self.size, :]

    def resized(self, size: int) -> Preprocess:
        """For a network of another input side, px, with the same room for random crops."""
        return dataclasses.replace(self, size=size, store_size=round(self.store_size * size / self.size))

    def fingerprint(self) -> str:
        """32 hexadecimal digits that change whenever stored pixels would."""
        facts = [PIXEL_VERSION, self.store_size, self.channels, self.fit, self.interpolation]
        return hashlib.blake2b(canonical_json(facts), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`. Raises ConfigError for unknown keys or wrong types."""
        return from_dict(cls, values, where="preprocess")


def _checked(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3))):
        raise ImageError(
            f"the array is no image: {array.dtype} {list(array.shape)}. Give uint8 [H, W] or [H, W, 1 | 3].",
            problem="not_an_image",
        )
    if 0 in array.shape:
        raise ImageError(f"the array is empty: {list(array.shape)}. Remove it.", problem="empty")
    return array


def _upright(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it; an EXIF block too corrupt to tell counts as none."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        # Pillow's EXIF parser raises whatever its byte reading meets: SyntaxError, struct.error, KeyError …
        return image
    # not ImageOps.exif_transpose, which also writes the block anew and fails where another tag of it is corrupt
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Grey or RGB from any mode: 16-bit values are divided by 256, transparency is laid on white.

    Floating-point values are clipped to 0..255, NaN is 0. Colour profiles are not applied. Raises ValueError.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F":
            eight_bit = np.clip(np.nan_to_num(values, nan=0.0), 0, 255)
        else:
            eight_bit = np.clip(values, 0, 65535) // 256
        image = Image.fromarray(eight_bit.astype(np.uint8))
    # two modes that Pillow converts by a detour only
    if image.mode in DETOURS:
        image = image.convert(DETOURS[image.mode])
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)
