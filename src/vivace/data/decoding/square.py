"""Converts a decoded picture to the stored square: grey or RGB, cropped, squashed or padded, and resized."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from vivace.data.decoding.tones import STRIP

__all__ = ["FITS", "PAD", "RESAMPLING", "kept_box", "padded_size", "to_square"]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FITS = ("crop", "squash", "pad")
# the margins of a padded image: middle grey in each channel
PAD = 128
# modes that Pillow can only convert via another one
DETOURS = {"LAB": "RGB", "La": "LA"}
# modes that Pillow converts to RGB and grey without an intermediate copy
PLAIN = ("1", "L", "P", "RGB", "YCbCr")


def to_square(image: Image.Image | np.ndarray, side: int, channels: int, fit: str, interpolation: str) -> np.ndarray:
    """uint8 [side, side, channels] of an upright image with 8 bits per channel.

    image: a Pillow image, or uint8 [H, W] or [H, W, 1 | 3]. channels: 1 or 3. Raises ValueError for a colour space that
    can't be converted.
    """
    mode = "L" if channels == 1 else "RGB"
    image = _of_array(image, mode) if isinstance(image, np.ndarray) else _converted(image, mode)
    if fit == "pad":
        size = padded_size(*image.size, side)
        if image.size != size:
            image = image.resize(size, RESAMPLING[interpolation])
        return centred(np.asarray(image).reshape(size[1], size[0], channels), side)
    if image.size != (side, side):
        # crop and resize in one step, to round only once
        image = image.resize((side, side), RESAMPLING[interpolation], box=kept_box(*image.size, fit))
    return np.asarray(image).reshape(side, side, channels)


def kept_box(width: int, height: int, fit: str) -> tuple[int, int, int, int]:
    """The part of an image that is kept: (left, top, right, bottom), px."""
    if fit != "crop":
        return 0, 0, width, height
    square = min(width, height)
    # whole pixels, so that a square of the stored size is cropped without resampling by half a pixel
    left, top = (width - square) // 2, (height - square) // 2
    return left, top, left + square, top + square


def padded_size(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) of an image scaled so that its longer side is `side`."""
    longer = max(width, height)
    return max(1, round(width * side / longer)), max(1, round(height * side / longer))


def centred(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 [side, side, C] with the pixels centred and PAD around them."""
    height, width, channels = pixels.shape
    square = np.full((side, side, channels), PAD, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Grey or RGB from any 8-bit mode; transparency is composited on white. Colour profiles are not applied."""
    if image.mode in PLAIN and "transparency" not in image.info:
        return image if image.mode == mode else image.convert(mode)
    # strip by strip: three more copies of the whole image may not fit in memory
    result = Image.new(mode, image.size)
    for box in _strips(*image.size):
        result.paste(_strip_converted(image.crop(box), mode), box[:2])
    return result


def _strip_converted(strip: Image.Image, mode: str) -> Image.Image:
    if strip.mode in DETOURS:
        strip = strip.convert(DETOURS[strip.mode])
    if strip.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in strip.info:
        strip = strip.convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        strip = Image.alpha_composite(white, strip)
    return strip.convert(mode)


def _of_array(pixels: np.ndarray, mode: str) -> Image.Image:
    """Grey or RGB of uint8 [H, W] or [H, W, 1 | 3]; to grey strip by strip, without a whole RGB image in between."""
    pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    if mode == "RGB" or pixels.ndim == 2:
        return _converted(Image.fromarray(pixels), mode)
    result = Image.new(mode, (pixels.shape[1], pixels.shape[0]))
    for box in _strips(*result.size):
        result.paste(Image.fromarray(pixels[box[1] : box[3]]).convert(mode), box[:2])
    return result


def _strips(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole rows that together cover an image."""
    rows = max(1, STRIP // width)
    return ((0, top, width, min(height, top + rows)) for top in range(0, height, rows))
