"""Preprocess: the only place that says how an image becomes pixels, in training, evaluation and prediction alike.

An image is turned upright by its EXIF tag, converted to grey or RGB, cut to its central square (or squashed into one),
resized to `store_size` and kept as uint8; the network sees the central `size` × `size` of that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from vivace.config import check_choice, check_range, from_dict, to_dict
from vivace.data.decode import read_image
from vivace.errors import ConfigError
from vivace.files import canonical_json

__all__ = ["Preprocess"]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# raised when stored pixels would come out otherwise than before: older caches are then made again
PIXEL_VERSION = 1
EXIF_ORIENTATION = 0x0112


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

        source: a path, an encoded file's bytes, a Pillow image, or uint8 [H, W] or [H, W, 1 | 3].
        Raises ImageError if it can't be decoded.
        """
        if isinstance(source, np.ndarray):
            image = Image.fromarray(source[..., 0] if source.ndim == 3 and source.shape[-1] == 1 else source)
        elif isinstance(source, Image.Image):
            image = source
        else:
            image = read_image(source, draft_size=self.store_size)
        return self.view(self.store(image))

    def store(self, image: Image.Image) -> np.ndarray:
        """The stored pixels of a decoded image, uint8 [store_size, store_size, channels]."""
        image = _converted(_upright(image), "L" if self.channels == 1 else "RGB")
        side = self.store_size
        if image.size != (side, side):
            width, height = image.size
            box: tuple[float, float, float, float] = (0, 0, width, height)
            if self.fit == "crop":
                square = min(width, height)
                left, top = (width - square) / 2, (height - square) / 2
                box = (left, top, left + square, top + square)
            # cut and resized in one go: no second rounding
            image = image.resize((side, side), RESAMPLING[self.interpolation], box=box)
        pixels = np.asarray(image)
        return pixels[..., None] if self.channels == 1 else pixels

    def view(self, stored: np.ndarray) -> np.ndarray:
        """The central [..., size, size, C] of stored pixels [..., store_size, store_size, C]; a view, not a copy."""
        margin = (self.store_size - self.size) // 2
        return stored[..., margin : margin + self.size, margin : margin + self.size, :]

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


def _upright(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it; a corrupt EXIF block counts as none."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        # Pillow's EXIF parser raises whatever its byte reading meets: SyntaxError, struct.error, KeyError …
        return image
    if orientation in (0, 1) or not isinstance(orientation, int):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Grey or RGB from any mode: 16-bit values are divided by 256, transparency is laid on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        eight_bit = np.clip(values, 0, 255) if image.mode == "F" else np.clip(values, 0, 65535) // 256
        image = Image.fromarray(eight_bit.astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)
