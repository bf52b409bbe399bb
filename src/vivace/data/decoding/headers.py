"""Reads the headers of image files before they are decoded: sizes, orientation, and declarations that cost too much.

Decoders process whatever a file declares. A few bytes can declare a thousand scans, a canvas of gigabytes or a hundred
million metadata entries. These are counted here first, from the structure of the file alone.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = [
    "Jpeg",
    "Tiff",
    "Unfit",
    "canvas_of_webp",
    "orientation_in",
    "read_jpeg",
    "read_tiff",
    "slim_png",
]

ORIENTATION = 0x0112
# encoders write 1 to 20 scans
MAX_SCANS = 100
# samples that a decoder visits in all scans; the usual 10 scans of a 100-megapixel photo visit 0.8e9 to 1.4e9
MAX_VISITS = 2_000_000_000
# pieces (segments, chunks) of a file; real files of 100 megapixels have about 50,000
MAX_PIECES = 200_000
# values of a TIFF tag that is not a block of bytes; the longest are offsets of strips and tiles
MAX_TIFF_VALUES = 2_000_000
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
# TIFF 6.0: type → letter of struct, size
TYPES = {1: ("B", 1), 2: ("B", 1), 3: ("H", 2), 4: ("I", 4), 6: ("b", 1), 7: ("B", 1), 8: ("h", 2), 9: ("i", 4)}
TYPES |= {5: ("Q", 8), 10: ("q", 8), 11: ("f", 4), 12: ("d", 8), 13: ("I", 4), 16: ("Q", 8), 17: ("q", 8), 18: ("Q", 8)}
# JPEG markers of tables: Huffman, quantization, restart interval
TABLES = frozenset((0xC4, 0xDB, 0xDD))
# JPEG markers of segments with a length
PLAIN = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xFF)))
SUB_BLOCKS = (0x8769, 0x8825, 0xA005)


class Unfit(Exception):
    """A file is not decoded. The text says why and how to fix it; `problem` is the short name."""

    def __init__(self, reason: str, problem: str = "bomb") -> None:
        super().__init__(reason)
        self.problem = problem


@dataclass
class Jpeg:
    """The header of a JPEG file, up to its first scan."""

    width: int = 0
    height: int = 0
    sampling: list[tuple[int, int, int]] = field(default_factory=list)
    """For each component: its id, horizontal and vertical sampling factor."""
    buffered: bool = False
    """The decoder keeps the coefficients of the whole image, because it is progressive or has several scans."""
    exif: bytes = b""
    xmp: bytes = b""
    useful: list[tuple[int, int]] = field(default_factory=list)
    """(start, end) of the segments that decoding needs."""
    scan: int = 0
    """Offset of the first scan."""
    end: int = 0
    """Offset of the end of the first scan's header."""

    def samples(self, components: frozenset[int] | None = None) -> float:
        """Samples per pixel of the given components, by default of all."""
        whole = max((h for _, h, _ in self.sampling), default=1) * max((v for _, _, v in self.sampling), default=1)
        kept = [h * v for number, h, v in self.sampling if components is None or number in components]
        return sum(kept) / max(1, whole)

    def coefficient_bytes(self) -> int:
        """Bytes that libjpeg keeps for coefficients, 2 for each."""
        return int(2 * self.width * self.height * self.samples()) if self.buffered else 0

    def dropped(self) -> bool:
        """Whether there is metadata to drop, so that `slim` makes a copy."""
        return sum([end - start for start, end in self.useful]) + 2 != self.scan

    def slim(self, data: bytes) -> bytes:
        """The file without its metadata, which decoders would parse."""
        if not self.dropped():
            return data
        view = memoryview(data)
        return b"".join([b"\xff\xd8", *(view[start:end] for start, end in self.useful), view[self.scan :]])


def read_jpeg(data: bytes) -> Jpeg | None:
    """The header of a JPEG file; None if the file ends before its first scan. Raises Unfit for too many scans."""
    found, place, last = Jpeg(), 2, len(data) - 4
    for _ in range(MAX_PIECES):
        # fast path for tables: for small pictures reading the header costs as much as decoding
        if place < last and data[place] == 0xFF and data[place + 1] in TABLES:
            end = place + 2 + (data[place + 2] << 8 | data[place + 3])
            found.useful.append((place, end))
            place = end
            continue
        if not (place < last and data[place] == 0xFF and data[place + 1] in PLAIN):
            match = MARKER.search(data, place)
            if match is None or match.end() + 2 > len(data):
                return None
            place = match.start()
        start, marker, place = place, data[place + 1], place + 2
        if marker in (0x01, 0xD8):
            continue
        if marker == 0xD9:
            return None
        end = place + int.from_bytes(data[place : place + 2], "big")
        body = data[place + 2 : end]
        place = end
        if marker == 0xDA:
            found.scan, found.end = start, end
            _count_scans(data, found, body)
            return found
        _take_segment(found, marker, body, (start, end))
    raise Unfit("its header has too many segments. Save it again.")


def _take_segment(found: Jpeg, marker: int, body: bytes, span: tuple[int, int]) -> None:
    if marker == 0xE1:
        if body.startswith(b"Exif\0\0") and len(found.exif) < 1 << 20:
            # a block over 64 KB continues in the next segment
            found.exif += body[6:]
        elif body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            found.xmp = body[29:]
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
        found.height, found.width = struct.unpack(">HH", body[1:5])
        found.buffered = marker in (0xC2, 0xC6, 0xCA, 0xCE)
        parts = (body[place : place + 3] for place in range(6, min(len(body) - 2, 6 + 3 * body[5]), 3))
        found.sampling = [(part[0], part[1] >> 4, part[1] & 15) for part in parts]
    # JFIF and Adobe segments state the colour space; other APPn segments and comments are not needed
    if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
        found.useful.append(span)


def _count_scans(data: bytes, found: Jpeg, body: bytes) -> None:
    """Set `buffered` if there are several scans. Raises Unfit for too many."""
    components = body[0] if body else 0
    found.buffered |= components < len(found.sampling)
    if not found.buffered:
        return
    # an upper bound by a quick search, which is enough in the usual case
    most = data.count(b"\xff\xda", found.scan)
    pixels = found.width * found.height
    if most <= MAX_SCANS and most * pixels * found.samples() <= MAX_VISITS:
        return
    visits = 0.0
    for scans, parts in enumerate(_scans(data, found.scan), start=1):
        visits += pixels * found.samples(parts)
        if scans > MAX_SCANS or visits > MAX_VISITS:
            raise Unfit(
                f"it has {'at least ' if visits <= MAX_VISITS else ''}{scans} scans of {pixels:,} pixels. "
                "Save it again."
            )


def _scans(data: bytes, place: int) -> Iterator[frozenset[int]]:
    """The component ids of each scan."""
    for _ in range(MAX_PIECES):
        match = MARKER.search(data, place)
        if match is None or data[match.start() + 1] == 0xD9:
            return
        marker, place = data[match.start() + 1], match.end()
        if marker in (0x01, 0xD8):
            continue
        length = int.from_bytes(data[place : place + 2], "big")
        if marker == 0xDA:
            body = data[place + 2 : place + length]
            yield frozenset(body[1 : 1 + 2 * (body[0] if body else 0) : 2])
        place += length
    raise Unfit("it has too many segments. Save it again.")


def slim_png(data: bytes) -> bytes:
    """A PNG file without what decoding does not need: text, profiles, animation. Raises Unfit for too many chunks."""
    kept, place, dropped = [(0, 8)], 8, 0
    for _ in range(MAX_PIECES):
        if place + 8 > len(data):
            break
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        end = min(len(data), place + 12 + length)
        if _png_needs(kind, data[place + 8 : place + 40], length):
            kept.append((place, end))
        else:
            dropped += end - place
        place = end
        if kind == b"IEND":
            break
    else:
        raise Unfit("it has too many chunks. Save it again.")
    # data after the end chunk is not part of the image
    if not dropped and place == len(data):
        return data
    view = memoryview(data)
    return b"".join([*(view[start:end] for start, end in kept)])


def _png_needs(kind: bytes, body: bytes, length: int) -> bool:
    if kind in (b"tEXt", b"zTXt", b"iTXt"):
        # these may hold the orientation; Pillow bounds their unpacked size
        return length < 1 << 20 and body.startswith((b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"))
    return kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf") or not kind[:1].islower()


def canvas_of_webp(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP file; None if its header is invalid."""
    kind, s = data[12:16], data[:30]
    if kind == b"VP8X" and len(s) == 30:
        return int.from_bytes(s[24:27], "little") + 1, int.from_bytes(s[27:30], "little") + 1
    if kind == b"VP8L" and len(s) >= 25 and s[20] == 0x2F:
        bits = int.from_bytes(s[21:25], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8 " and len(s) == 30 and s[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(s[26:28], "little") & 0x3FFF, int.from_bytes(s[28:30], "little") & 0x3FFF
    return None


@dataclass
class Tiff:
    """The first directory of a TIFF file."""

    values: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """Tag → values; bytes and text as numbers."""
    more: bool = False
    """Whether another picture follows."""

    def number(self, tag: int, default: float = 0) -> float:
        """The first value of a tag."""
        found = self.values.get(tag, ())
        return found[0] if found else default

    def block_bytes(self) -> int:
        """Bytes for one tile, which may be larger than the image, or for one strip, which may be the whole image."""
        bits = self.values.get(258, (1,))
        samples = 1 if self.number(284) == 2 else max(len(bits), self.number(277, 1))
        # YCbCr is converted to RGBA here
        each = max(sum(bits), max(bits) * samples, 1) / 8 + 4 * (self.number(262) == 6)
        if self.number(322):
            return int(self.number(322) * self.number(323) * each)
        # without compression it is read row by row
        rows = 0 if self.number(259, 1) == 1 else min(self.number(278, 1 << 32), self.number(257))
        return int(self.number(256) * rows * each)


def read_tiff(data: bytes, start: int = 0, *, inner: bool = False) -> Tiff:
    """The first directory of a TIFF file or EXIF block that begins at `start`, as far as it is readable.

    inner: don't read its subdirectories. Raises Unfit if tags claim more bytes than the file has, since decoders copy
    them.
    """
    found = Tiff()
    order = "<" if data[start : start + 2] == b"II" else ">"
    big = data[start + 2 : start + 4] in (b"+\0", b"\0+")
    try:
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, start + (8 if big else 4))
        _read_directory(data, start, place, order, big, found)
        if not inner:
            for tag in SUB_BLOCKS:
                if tag in found.values:
                    _read_directory(data, start, int(found.number(tag)), order, big, Tiff())
    except (struct.error, OverflowError, ValueError):
        # damaged: the decoder will report it
        pass
    return found


def _read_directory(data: bytes, start: int, place: int, order: str, big: bool, found: Tiff) -> None:
    width, head = (8, "Q") if big else (4, "H")
    (count,) = struct.unpack_from(order + head, data, start + place)
    place += struct.calcsize(head)
    total = 0
    for _ in range(min(count, 65535)):
        tag, kind, values = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, start + place)
        letter, size = TYPES.get(kind, ("B", 0))
        total += values * size if values * size > width else 0
        if total > len(data) or (values > MAX_TIFF_VALUES and kind not in (1, 2, 6, 7)):
            raise Unfit("its tags claim more bytes than it has. Save it again.")
        field_at = place + (12 if big else 8)
        if size and values * size > width:
            (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, start + field_at)
        else:
            at = field_at
        # long tables are not needed here
        if size and values <= 4096 and tag not in found.values:
            found.values[tag] = struct.unpack_from(f"{order}{values}{letter}", data, start + at)
        place = field_at + width
    found.more = struct.unpack_from(order + ("Q" if big else "I"), data, start + place)[0] != 0


def orientation_in(exif: bytes, xmp: bytes) -> int:
    """The orientation, 1 to 8 as in EXIF 2.32: from the EXIF block, else from XMP, else 1."""
    block = exif
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    if block[:4] in (b"II*\0", b"MM\0*"):
        try:
            value = _orientation_tag(block)
        except struct.error:
            value = None
        if value is not None:
            return value if 1 <= value <= 8 else 1
    match = XMP.search(xmp)
    value = int(match[1]) if match else 1
    return value if 1 <= value <= 8 else 1


def _orientation_tag(block: bytes) -> int | None:
    """The orientation tag; reads no other tag, because these may be corrupt or claim gigabytes."""
    order = "<" if block[:2] == b"II" else ">"
    (place,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, place)
    for index in range(count):
        at = place + 2 + 12 * index
        tag, kind, values = struct.unpack_from(order + "HHI", block, at)
        if tag == ORIENTATION and values == 1 and kind in (1, 3, 4):
            value: int = struct.unpack_from(order + TYPES[kind][0], block, at + 8)[0]
            return value
    return None
