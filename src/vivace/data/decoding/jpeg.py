"""Plain JPEGs by libjpeg-turbo alone: the pixels of Pillow, to the last bit, without what Pillow does around it."""

from __future__ import annotations

import numpy as np

try:
    import simplejpeg
except ImportError:
    # as in a folder for deployment, where it need not be installed
    simplejpeg = None

__all__ = ["decode_plain_jpeg"]

# colour space in the file → what to ask for
COLOURS = {"YCbCr": "RGB", "Gray": "GRAY"}


def decode_plain_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels of a JPEG file, uint8 [H, W, 3 | 1], as Pillow decodes them; None for what is Pillow's to judge.

    That is anything but a whole grey or YCbCr JPEG. A small picture takes a tenth of Pillow's time, a photo of 200 px
    three quarters.
    """
    try:
        colour = COLOURS.get(simplejpeg.decode_jpeg_header(data)[2]) if simplejpeg else None
        return simplejpeg.decode_jpeg(data, colour) if colour else None
    except ValueError:
        # on every complaint of libjpeg-turbo, about a truncated file for one, fall back to Pillow
        return None
