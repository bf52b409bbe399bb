"""An image file → the pixels that the network sees, as training made them.

It is turned upright by EXIF or XMP, converted to 8 bits and to grey or RGB, cut to its central square (or squashed or
padded into one) and resized; the network sees the middle of that. Images of 16 bits, of floats or of other channels
than grey and RGB are cut and resized alone. What could run code or fill the memory is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from image_decoder.decode import PillowGuard, check_size, decoding, shown
from image_decoder.errors import ImageError
from image_decoder.raw import arranged, check_raw, is_raw, raw_square
from image_decoder.raw_files import raw_decoding
from image_decoder.square import to_square

__all__ = ["ImageError", "load_pixels"]

MAX_PIXELS = 100_000_000


def load_pixels(source: str | os.PathLike[str] | bytes | np.ndarray, preprocess: Mapping[str, Any]) -> np.ndarray:
    """What the network sees of an image file (a path, or its bytes): [size, size, channels], uint8 or float32.

    An array is taken where images are kept as they are. preprocess: that of model.json. Raises ImageError.
    """
    size, side, channels = (preprocess[key] for key in ("size", "store_size", "channels"))
    if is_raw(preprocess.get("pixels", "uint8"), channels):
        return _raw_pixels(source, preprocess)
    if isinstance(source, np.ndarray):
        raise ImageError("this model takes image files: got an array. Save it as PNG.", problem="not_an_image")
    name = "the image" if isinstance(source, bytes) else os.fspath(source)
    given = source if isinstance(source, bytes) else name
    max_pixels = preprocess.get("max_pixels", MAX_PIXELS)
    with PillowGuard(), decoding(given, max_pixels=max_pixels, draft_size=side) as (_, picture):
        decoded = picture.pixels
        try:
            pixels = to_square(decoded, side, channels, preprocess["fit"], preprocess["interpolation"])
        except ValueError as error:
            raise ImageError(
                f"the colours can't be converted: {shown(name)} is {getattr(decoded, 'mode', 'an array')} ({error}). "
                "Save it as RGB.",
                problem="not_convertible",
            ) from None
    return _middle(pixels, side, size)


def _middle(pixels: np.ndarray, side: int, size: int) -> np.ndarray:
    margin = (side - size) // 2
    return pixels[margin : margin + size, margin : margin + size]


def _raw_pixels(source: str | os.PathLike[str] | bytes | np.ndarray, preprocess: Mapping[str, Any]) -> np.ndarray:
    if isinstance(source, np.ndarray):
        return _cut(source, "the array", preprocess)
    name = "the image" if isinstance(source, bytes) else os.fspath(source)
    given = source if isinstance(source, bytes) else name
    max_pixels = preprocess.get("max_pixels", MAX_PIXELS)
    with raw_decoding(given, max_pixels=max_pixels, side=preprocess["store_size"]) as (_, picture):
        return _cut(np.asarray(picture.pixels), shown(name), preprocess)


def _cut(array: np.ndarray, name: str, preprocess: Mapping[str, Any]) -> np.ndarray:
    side, channels = preprocess["store_size"], preprocess["channels"]
    array_HWC = arranged(array, channels)
    check_size(*array_HWC.shape[1::-1][:2], max_pixels=preprocess.get("max_pixels", MAX_PIXELS))
    array_HWC = check_raw(array_HWC, preprocess["pixels"], channels, name)
    pixels = _middle(
        raw_square(array_HWC, side, preprocess["fit"], preprocess["interpolation"]), side, preprocess["size"]
    )
    return pixels.astype(np.float32) if pixels.dtype == np.uint16 else pixels
