"""Estimates, from its header, the memory that decoding and converting an image takes; tests measure every format."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from vivace.data.decoding.headers import read_tiff
from vivace.data.decoding.picture import GREY_ALPHA, OTHER_BYTE, orientation_of, raw_mode

__all__ = ["ARRAY", "NEEDED", "bytes_per_pixel", "check_avif"]

# bytes per pixel that decoders need for planes, the picture and a copy of it: measured for WebP and AVIF; HEIC is
# assumed to need as much as AVIF
NEEDED = {"WEBP": 16, "AVIF": 14, "HEIF": 14}
# bytes per pixel of an RGB array and the Pillow image made of it
ARRAY = 7
# chunks of a PNG that may hold its orientation
ORIENTATION_CHUNKS = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")


def bytes_per_pixel(image: Image.Image, kind: str, data: bytes) -> tuple[int, int]:
    """(while decoding, while converting to grey or RGB): bytes per pixel that an opened image takes."""
    mode, raw, transparent = image.mode, raw_mode(image), "transparency" in image.info
    each = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    # 16 bits per channel are read twice, for the high bytes and for the low ones; a single channel is read once
    decoding = NEEDED.get(kind, 8 if raw == GREY_ALPHA or raw in OTHER_BYTE else each)
    if kind == "AVIF" and not _has_8_bits(data):
        decoding += 4
    if each < 4 or mode in ("I", "F"):
        return decoding, 6 if each == 4 else 5
    is_turned = orientation_of(image) != 1 or _has_late_orientation(data, kind)
    if is_turned and raw == GREY_ALPHA:
        # four bytes as read, two that are made of them, and these rotated
        return decoding, 12
    return decoding, 8 if is_turned or transparent or mode != "RGB" else 5


def _has_8_bits(data: bytes) -> bool:
    """Whether every AV1 configuration of an AVIF file (AV1-ISOBMFF 2.3.3) declares 8 bits per value."""
    marks = [place + 6 for place in _places(data, b"av1C")]
    return bool(marks) and not any(flags & 0x40 for at in marks for flags in data[at : at + 1])


def _has_late_orientation(data: bytes, kind: str) -> bool:
    """Whether a PNG may state its orientation only after its pixels."""
    start = data.find(b"IDAT") if kind == "PNG" else -1
    return start >= 0 and any(data.find(mark, start) >= 0 for mark in ORIENTATION_CHUNKS)


def _places(data: bytes, mark: bytes) -> Iterator[int]:
    """The positions of `mark` in the data."""
    place = data.find(mark)
    while place >= 0:
        yield place
        place = data.find(mark, place + 1)


def check_avif(data: bytes) -> None:
    """Raise Unfit for an EXIF block whose tags claim too many bytes; Pillow copies every tag, wherever the block is."""
    for mark in (b"II*\0", b"MM\0*"):
        for place in _places(data, mark):
            read_tiff(data, place, inner=True)
