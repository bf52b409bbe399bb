"""A decoded picture: its memory limits, reduction to 8 bits, and orientation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vivace.data.decoding.headers import Unfit, orientation_in
from vivace.data.decoding.memory import DECODING
from vivace.data.decoding.tones import STRIP, Depth, combined, eight_bit, grey_alpha, tops_of

__all__ = [
    "GREY_ALPHA",
    "OTHER_BYTE",
    "UPRIGHT",
    "Limits",
    "Picture",
    "load_picture",
    "orientation_of",
    "raw_mode",
    "read_as",
    "turned",
]

MIN_SIDE = 4
MAX_ASPECT = 50
# a JPEG decoded at a lower resolution may have this many times `max_pixels`
JPEG_FACTOR = 5
# memory for decoding and converting, per pixel of `max_pixels`: 768 MB for 100 megapixels
BYTES_PER_PIXEL = 7.68
# unpacked size of colours with 16 bits per channel, per pixel of `max_pixels`: 440 MB, or some seconds for a PNG
DEEP_BYTES_PER_PIXEL = 4.4
# bytes per pixel of a strip that is converted; four channels of 16 bits need the most copies
STRIP_BYTES = 80
EXIF_ORIENTATION = 0x0112
# EXIF 2.32, tag 0x0112: how to transpose the stored picture to make it upright; 1 means unchanged
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# raw mode with 16 bits per channel → the one that reads the other byte of each value
SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
OTHER_BYTE = {
    f"{bands};16{order}": f"{bands};16{other}" for bands in ("RGB", "RGBA", "RGBX") for order, other in SWAPPED.items()
}
# 16-bit grey and alpha, read as four 8-bit channels
GREY_ALPHA = "LA;16B"


@dataclass
class Picture:
    """The decoded picture of an image file."""

    pixels: Image.Image | np.ndarray
    """Upright, 8 bits per channel: a Pillow image, or uint8 [H, W, 1 | 3]."""
    kind: str
    """A key of `FORMATS`."""
    notes: tuple[str, ...] = ()
    """What was ignored: several_pictures, channels_dropped."""
    white: int | None = None
    """The value that became 255, if the file has more than 8 bits per channel and declares no depth."""


@dataclass(frozen=True)
class Limits:
    """Limits on an image's size and memory, and the resolution that is needed."""

    max_pixels: int
    draft_size: int | None = None

    def check(self, size: tuple[int, int], max_pixels: int | None = None) -> None:
        """Raise Unfit for an image that is too large, too small or too elongated; size: (width, height), px."""
        width, height = size
        limit = max_pixels or self.max_pixels
        if width * height > limit:
            raise Unfit(f"too many pixels: NAME is {width} × {height}, the limit is {limit:,}. {HOW_TO_FIX}")
        if min(width, height) < MIN_SIDE:
            raise Unfit(
                f"the image is too small: NAME is {width} × {height}, at least {MIN_SIDE} px are needed. Leave it out.",
                "too_small",
            )
        if max(width, height) >= MAX_ASPECT * min(width, height):
            raise Unfit(
                f"the image is too elongated: NAME is {width} × {height}, {MAX_ASPECT} : 1 or more. Leave it out.",
                "extreme_aspect",
            )

    def grant(self, needed: float, size: tuple[int, int], beside: int = 0) -> contextlib.AbstractContextManager[None]:
        """A context that holds `needed` bytes for decoding. Raises Unfit if that exceeds the limit for an image.

        Memory that does not grow with the pixels is held too, but not counted against the limit: `beside`, the strip
        being converted, and the resized square with its intermediate rows.
        """
        limit = self.max_pixels * BYTES_PER_PIXEL
        if needed > limit:
            raise Unfit(f"decoding NAME takes {needed / 1e6:,.0f} MB, the limit is {limit / 1e6:,.0f} MB. {HOW_TO_FIX}")
        side = self.draft_size or 0
        return DECODING.hold(
            int(needed) + beside + STRIP_BYTES * min(size[0] * size[1], STRIP) + 4 * side * (max(size) + side)
        )

    def check_deep(self, raw: str, size: tuple[int, int]) -> None:
        """Raise Unfit for too large colour images with 16 bits per channel: these are unpacked twice, once per byte."""
        if raw not in OTHER_BYTE:
            return
        unpacked = size[0] * size[1] * (6 if raw.startswith("RGB;") else 8)
        limit = self.max_pixels * DEEP_BYTES_PER_PIXEL
        if unpacked > limit:
            raise Unfit(
                f"unpacking NAME, 16 bits per channel, takes twice {unpacked / 1e6:,.0f} MB, "
                f"the limit is {limit / 1e6:,.0f} MB. {HOW_TO_FIX}"
            )

    def shrink(self, width: int, height: int) -> int:
        """The factor by which a JPEG is reduced while decoding, as Pillow chooses it: 1, 2, 4 or 8."""
        if self.draft_size is None or min(width, height) < 4 * self.draft_size:
            return 1
        return next(step for step in (8, 4, 2, 1) if min(width, height) // (2 * self.draft_size) >= step)


# a bundle keeps the limit it was trained with: answers do not depend on who asks
HOW_TO_FIX = "Make it smaller, or train with a higher data.max_pixels."


def load_picture(
    image: Image.Image,
    kind: str,
    again: Callable[[], Image.Image] | None = None,
    depth: Depth = Depth(),  # noqa: B008 (it is frozen)
) -> Picture:
    """Decode an opened image. again: opens it once more, to read the low bytes of 16 bits per channel."""
    raw = raw_mode(image)
    several = getattr(image, "is_animated", False) if kind in ("WEBP", "AVIF") else False
    white = None
    if raw == GREY_ALPHA:
        read_as(image, "RGBA")
    image.load()
    orientation = orientation_of(image)
    if raw == GREY_ALPHA:
        image, white = grey_alpha(image)
    elif raw in OTHER_BYTE and again is not None and _is_low(image, depth):
        lower = again()
        read_as(lower, OTHER_BYTE[raw])
        lower.load()
        image, white = combined(image, lower, depth.white)
        del lower
    elif image.mode.startswith("I") or image.mode == "F" or (depth.signed and image.mode == "L"):
        image, white = eight_bit(image, depth)
    notes = ("several_pictures",) * bool(several)
    return Picture(turned(image, orientation), kind, notes, white if depth.white is None else None)


def raw_mode(image: Image.Image) -> str:
    """Pillow's raw mode (the layout of the file's bytes) of an image that is not decoded yet; "" if unknown."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def read_as(image: Image.Image, raw: str) -> None:
    """Make Pillow read the bytes of an image that is not decoded yet in another raw mode of the same width."""

    def changed(arguments: Any) -> Any:
        return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw

    image.tile = [tile._replace(args=changed(tile.args)) for tile in image.tile]  # type: ignore[attr-defined]


def _is_low(image: Image.Image, depth: Depth) -> bool:
    """Whether the high bytes alone have few tones: at most 12 bits are used, or the file declares a depth."""
    return depth.white not in (None, 65535) or max(tops_of(image)[:3]) < 16


def orientation_of(image: Image.Image) -> int:
    """The orientation, 1 to 8, by EXIF or else by XMP; a corrupt block is ignored."""
    if image.format == "TIFF":
        try:
            value = image.getexif().get(EXIF_ORIENTATION, 1)
        except Exception:
            # Pillow's EXIF parser raises all kinds of errors: SyntaxError, struct.error, KeyError …
            return 1
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    info = image.info
    exif = info.get("exif", b"")
    if not exif and "Raw profile type exif" in info:
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(str(info["Raw profile type exif"]).split("\n")[3:]))
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
    xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
    return orientation_in(exif if isinstance(exif, bytes) else b"", xmp if isinstance(xmp, bytes) else b"")


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image rotated or flipped upright; orientation: 1 to 8, as in EXIF."""
    method = UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)
