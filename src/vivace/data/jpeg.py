"""Plain JPEGs by libjpeg-turbo alone: the pixels of Pillow, to the last bit, without what Pillow does around it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import simplejpeg

__all__ = ["decode_plain_jpeg"]

# colour space in the file → what to ask for
COLOURS = {"YCbCr": "RGB", "Gray": "GRAY"}
# what Pillow reads and this does not: a turned picture, more than one picture
FOR_PILLOW = (b"Exif\x00", b"MPF\x00")


def decode_plain_jpeg(
    data: bytes, check: Callable[[tuple[int, int]], None], *, draft_size: int | None = None
) -> np.ndarray | None:
    """The pixels of a JPEG file, uint8 [H, W, 3 | 1], as Pillow decodes them; None for what is Pillow's to judge.

    That is anything but a whole grey or YCbCr JPEG without EXIF, and one four times as large as draft_size, which
    Pillow decodes at a lower resolution. check is given (width, height) before a pixel is decoded, and may raise.
    A small picture takes a tenth of Pillow's time, a photo of 200 px three quarters.
    """
    if not data.startswith(b"\xff\xd8\xff") or any(mark in data for mark in FOR_PILLOW):
        return None
    size: tuple[int, int] | None = None
    # every complaint of libjpeg-turbo, a truncated file for one, is put to Pillow, whose word counts
    with contextlib.suppress(ValueError):
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        size = width, height
    if size is None or colour not in COLOURS:
        return None
    check(size)
    if draft_size is not None and min(size) >= 4 * draft_size:
        return None
    wanted = COLOURS[colour]
    with contextlib.suppress(ValueError):
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, wanted)
        return pixels
    return None
