"""Memory that a picture takes while it is decoded and converted, as its header tells: tests measure every format."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from vivace.data.decoding.headers import read_tiff
from vivace.data.decoding.picture import GREY_ALPHA, OTHER_BYTE, orientation_of, raw_mode

__all__ = ["ARRAY", "NEEDED", "bytes_a_pixel", "check_avif"]

# bytes a pixel that decoders need, measured for WebP and AVIF: planes, the picture and a copy of it. That of HEIC is an
# estimate: it is taken to hold what AVIF does
NEEDED = {"WEBP": 16, "AVIF": 14, "HEIF": 14}
# bytes a pixel of an array in RGB and the image that is made of it
ARRAY = 7
# where a PNG may say how it is turned
LATE = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")


def bytes_a_pixel(image: Image.Image, kind: str, data: bytes) -> tuple[int, int]:
    """What an opened image takes while it is decoded, and from then until it is grey or RGB: tests measure both."""
    mode, raw, transparent = image.mode, raw_mode(image), "transparency" in image.info
    each = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    # the high bytes, and then the low ones beside them; one channel of more than 8 bits is read once
    decoding = NEEDED.get(kind, 8 if raw == GREY_ALPHA or raw in OTHER_BYTE else each)
    if kind == "AVIF" and not _has_8_bits(data):
        decoding += 4
    if each < 4 or mode in ("I", "F"):
        return decoding, 6 if each == 4 else 5
    is_turned = orientation_of(image) != 1 or _told_late(data, kind)
    if is_turned and raw == GREY_ALPHA:
        # its four bytes, the two that become of them, and these turned
        return decoding, 12
    return decoding, 8 if is_turned or transparent or mode != "RGB" else 5


def _has_8_bits(data: bytes) -> bool:
    """Whether every AV1 configuration of an AVIF file (AV1-ISOBMFF 2.3.3) says 8 bits a value."""
    marks = [place + 6 for place in _places(data, b"av1C")]
    return bool(marks) and not any(flags & 0x40 for at in marks for flags in data[at : at + 1])


def _told_late(data: bytes, kind: str) -> bool:
    """Whether a PNG says only after its pixels which way up it stands."""
    start = data.find(b"IDAT") if kind == "PNG" else -1
    return start >= 0 and any(data.find(mark, start) >= 0 for mark in LATE)


def _places(data: bytes, mark: bytes) -> Iterator[int]:
    """Where some bytes are found."""
    place = data.find(mark)
    while place >= 0:
        yield place
        place = data.find(mark, place + 1)


def check_avif(data: bytes) -> None:
    """Pillow copies every tag of its EXIF block, wherever that lies."""
    for mark in (b"II*\0", b"MM\0*"):
        for place in _places(data, mark):
            read_tiff(data, place, inner=True)
