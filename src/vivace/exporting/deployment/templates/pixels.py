"""An image file → the pixels that the network sees, as training made them.

It is turned upright by EXIF or XMP, converted to 8 bits and to grey or RGB, cut to its central square (or squashed or
padded into one) and resized; the network sees the middle of that. What could run code or fill the memory is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from image_decoder.decode import PillowGuard, decoding, shown
from image_decoder.errors import ImageError
from image_decoder.square import to_square

__all__ = ["ImageError", "load_pixels"]

MAX_PIXELS = 100_000_000


def load_pixels(source: str | os.PathLike[str] | bytes, preprocess: Mapping[str, Any]) -> np.ndarray:
    """What the network sees of an image file (a path, or its bytes): uint8 [size, size, channels].

    preprocess: that of model.json. Raises ImageError.
    """
    size, side, channels = (preprocess[key] for key in ("size", "store_size", "channels"))
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
    margin = (side - size) // 2
    return pixels[margin : margin + size, margin : margin + size]
