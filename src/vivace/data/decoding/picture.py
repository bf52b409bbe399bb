"""A decoded picture: what it may need, how its values become 8 bits, and which way up it stands."""

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
    "turned",
]

MIN_SIDE = 4
MAX_ASPECT = 50
# a JPEG that is decoded at a lower resolution may have as many times the pixels
JPEG_FACTOR = 5
# while it is decoded and converted; 100 megapixels may take 768 MB
BYTES_PER_PIXEL = 7.68
# unpacked, of colours of 16 bits a channel; 100 megapixels may have 440 MB: a PNG of as many takes five seconds
DEEP_BYTES_PER_PIXEL = 4.4
# a pixel of a strip that is converted: four channels of 16 bits are copied most often
STRIP_BYTES = 80
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
# raw mode of 16 bits a channel → the one that reads the other byte of each value
SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
OTHER_BYTE = {
    f"{bands};16{order}": f"{bands};16{other}" for bands in ("RGB", "RGBA", "RGBX") for order, other in SWAPPED.items()
}
# grey and alpha: both bytes of each as four channels
GREY_ALPHA = "LA;16B"


@dataclass
class Picture:
    """What an image file holds."""

    pixels: Image.Image | np.ndarray
    """Upright, 8 bits a channel: a Pillow image, or uint8 [H, W, 1 | 3]."""
    kind: str
    """A key of `FORMATS`."""
    notes: tuple[str, ...] = ()
    """several_pictures, channels_dropped: what was left out."""
    white: int | None = None
    """The value that became 255, for more than 8 bits a channel that declare no depth."""


@dataclass(frozen=True)
class Limits:
    """What an image may have, and how small it may be decoded."""

    max_pixels: int
    draft_size: int | None = None

    def check(self, size: tuple[int, int], max_pixels: int | None = None) -> None:
        """Raise Unfit for a size that is not wanted."""
        width, height = size
        cap = max_pixels or self.max_pixels
        if width * height > cap:
            raise Unfit(f"too many pixels: NAME is {width} × {height}, the cap is {cap:,}. {LARGER}")
        if min(width, height) < MIN_SIDE:
            raise Unfit(
                f"the image is too small: NAME is {width} × {height}, at least {MIN_SIDE} px are needed. Leave it out.",
                "too_small",
            )
        if max(width, height) >= MAX_ASPECT * min(width, height):
            raise Unfit(
                f"the image is a strip: NAME is {width} × {height}, {MAX_ASPECT} : 1 or more. Leave it out.",
                "extreme_aspect",
            )

    def grant(self, needed: float, size: tuple[int, int], beside: int = 0) -> contextlib.AbstractContextManager[None]:
        """Hold so many bytes while decoding. Raises Unfit for more than an image may take.

        Held as well, but not counted against the cap, is what does not grow with every pixel: `beside`, a strip that is
        converted, and the square that becomes of it with the rows that are resized first.
        """
        cap = self.max_pixels * BYTES_PER_PIXEL
        if needed > cap:
            raise Unfit(f"decoding NAME takes {needed / 1e6:,.0f} MB, the cap is {cap / 1e6:,.0f} MB. {LARGER}")
        side = self.draft_size or 0
        return DECODING.hold(
            int(needed) + beside + STRIP_BYTES * min(size[0] * size[1], STRIP) + 4 * side * (max(size) + side)
        )

    def check_deep(self, raw: str, size: tuple[int, int]) -> None:
        """Raise Unfit for 16 bits a channel that are unpacked twice, for each byte, in more than five seconds."""
        if raw not in OTHER_BYTE:
            return
        unpacked, cap = size[0] * size[1] * (6 if raw.startswith("RGB;") else 8), self.max_pixels * DEEP_BYTES_PER_PIXEL
        if unpacked > cap:
            raise Unfit(
                f"unpacking NAME, 16 bits a channel, takes twice {unpacked / 1e6:,.0f} MB, "
                f"the cap is {cap / 1e6:,.0f} MB. {LARGER}"
            )

    def shrink(self, width: int, height: int) -> int:
        """How many times smaller a JPEG is decoded, as Pillow chooses: 1, 2, 4 or 8."""
        if self.draft_size is None or min(width, height) < 4 * self.draft_size:
            return 1
        return next(step for step in (8, 4, 2, 1) if min(width, height) // (2 * self.draft_size) >= step)


LARGER = "Make it smaller, or raise data.max_pixels."


def load_picture(
    image: Image.Image,
    kind: str,
    again: Callable[[], Image.Image] | None = None,
    depth: Depth = Depth(),  # noqa: B008 (it is frozen)
) -> Picture:
    """Decode an opened image; `again` opens it once more, for the lower half of 16 bits a channel."""
    raw = raw_mode(image)
    several = getattr(image, "is_animated", False) if kind in ("WEBP", "AVIF") else False
    white = None
    if raw == GREY_ALPHA:
        _read_as(image, "RGBA")
    image.load()
    orientation = orientation_of(image)
    if raw == GREY_ALPHA:
        image, white = grey_alpha(image)
    elif raw in OTHER_BYTE and again is not None and _is_low(image, depth):
        lower = again()
        _read_as(lower, OTHER_BYTE[raw])
        lower.load()
        image, white = combined(image, lower, depth.white)
        del lower
    elif image.mode.startswith("I") or image.mode == "F" or (depth.signed and image.mode == "L"):
        image, white = eight_bit(image, depth)
    notes = ("several_pictures",) * bool(several)
    return Picture(turned(image, orientation), kind, notes, white if depth.white is None else None)


def raw_mode(image: Image.Image) -> str:
    """How an image that is not decoded yet has its bytes read, a name of Pillow's; empty where it does not say."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _read_as(image: Image.Image, raw: str) -> None:
    """Have the bytes of an image that is not decoded yet taken for another raw mode of as many bytes."""

    def changed(arguments: Any) -> Any:
        return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw

    image.tile = [tile._replace(args=changed(tile.args)) for tile in image.tile]  # type: ignore[attr-defined]


def _is_low(image: Image.Image, depth: Depth) -> bool:
    """Whether the high bytes alone leave few tones: 12 bits or fewer, or a depth that the file declares."""
    return depth.white not in (None, 65535) or max(tops_of(image)[:3]) < 16


def orientation_of(image: Image.Image) -> int:
    """1 to 8, by EXIF, else by XMP; a block too corrupt to tell counts as none."""
    if image.format == "TIFF":
        try:
            value = image.getexif().get(EXIF_ORIENTATION, 1)
        except Exception:
            # Pillow's EXIF parser raises whatever its byte reading meets: SyntaxError, struct.error, KeyError …
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
    method = UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)
