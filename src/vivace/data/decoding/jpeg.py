"""Decodes ordinary JPEGs directly by libjpeg-turbo: bit for bit the pixels of Pillow, without its overhead."""

from __future__ import annotations

import numpy as np

try:
    import simplejpeg
except ImportError:
    # optional in a deployment
    simplejpeg = None

__all__ = ["decode_plain_jpeg"]

# colour space of the file → colour space to decode to
COLOURS = {"YCbCr": "RGB", "Gray": "GRAY"}


def decode_plain_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels of a JPEG file, uint8 [H, W, 3 | 1], as Pillow decodes them; None if Pillow must decode it.

    Only complete grey and YCbCr JPEGs are decoded here. The gain is largest for small pictures.
    """
    try:
        colour = COLOURS.get(simplejpeg.decode_jpeg_header(data)[2]) if simplejpeg else None
        return simplejpeg.decode_jpeg(data, colour) if colour else None
    except ValueError:
        # libjpeg-turbo complains, such as about a truncated file: fall back to Pillow
        return None
