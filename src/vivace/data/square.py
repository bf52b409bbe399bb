"""From a decoded picture to the square of pixels that is stored: grey or RGB, cut, squashed or padded, resized."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["FITS", "PAD", "RESAMPLING", "kept_box", "padded_size", "to_square"]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FITS = ("crop", "squash", "pad")
# the margins of a padded image: grey, the middle of the scale in each channel
PAD = 128
DETOURS = {"LAB": "RGB", "La": "LA"}
# pixels that are converted at once
STRIP = 1 << 20


def to_square(image: Image.Image, side: int, channels: int, fit: str, interpolation: str) -> np.ndarray:
    """uint8 [side, side, channels] of an upright image of 8 bits a channel. Raises ValueError for other colours."""
    image = _converted(image, "L" if channels == 1 else "RGB")
    if fit == "pad":
        size = padded_size(*image.size, side)
        if image.size != size:
            image = image.resize(size, RESAMPLING[interpolation])
        return centred(np.asarray(image).reshape(size[1], size[0], channels), side)
    if image.size != (side, side):
        # cut and resized in one go: no second rounding
        image = image.resize((side, side), RESAMPLING[interpolation], box=kept_box(*image.size, fit))
    return np.asarray(image).reshape(side, side, channels)


def kept_box(width: int, height: int, fit: str) -> tuple[int, int, int, int]:
    """What is kept of an image: left, top, right, bottom."""
    if fit != "crop":
        return 0, 0, width, height
    square = min(width, height)
    # whole pixels: a square that has the stored size already is cut, not blurred by half a pixel
    left, top = (width - square) // 2, (height - square) // 2
    return left, top, left + square, top + square


def padded_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of an image whose longer side becomes `side`."""
    longer = max(width, height)
    return max(1, round(width * side / longer)), max(1, round(height * side / longer))


def centred(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 [side, side, C] with the pixels in the middle and PAD around them."""
    height, width, channels = pixels.shape
    square = np.full((side, side, channels), PAD, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Grey or RGB from any mode of 8 bits: transparency is laid on white. Colour profiles are not applied."""
    # two modes that Pillow converts by a detour only
    if image.mode in DETOURS:
        image = image.convert(DETOURS[image.mode])
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        return _on_white(image, mode)
    return image if image.mode == mode else image.convert(mode)


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    """Strip by strip: three copies of a whole image may not fit beside it."""
    width, height = image.size
    result = Image.new(mode, image.size)
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(height, top + rows))).convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        result.paste(Image.alpha_composite(white, strip).convert(mode), (0, top))
    return result
