"""TIFF of any number of channels, as it is.

Pillow reads no TIFF of many channels, but any of one: so its directory is written anew, as that of a grey picture of 8
bits with all bytes of a row side by side, and what decodes every other TIFF decodes this one too.
"""

from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
from PIL import Image

from vivace.data.decoding.formats import HEAD_BYTES, sniff
from vivace.data.decoding.headers import Tiff, Unfit, read_tiff
from vivace.data.decoding.picture import Limits

__all__ = ["how_to_keep", "raw_shape_of", "read_raw_tiff", "sample_format"]

# (bits, sample format) → dtype; TIFF 6.0, tags 258 and 339
DTYPES = {(8, 1): "uint8", (16, 1): "uint16", (32, 3): "float32"}
# tags of the new directory that change with the channels, and those that are taken as they are
WIDTH, HEIGHT, TILE_WIDTH, ORIENTATION = 256, 257, 322, 274
TABLES = {273, 279, 324, 325}
KEPT = {HEIGHT, 259, 266, 278, 323}
MAX_CHANNELS = 256
# TIFF 6.0: type → size; of unsigned integers: size → letter of struct
SIZES = {3: 2, 4: 4, 16: 8}
LETTERS = {2: "H", 4: "I", 8: "Q"}


def raw_shape_of(data: bytes) -> tuple[int, int, int, str] | None:
    """(height, width, channels, dtype) of a TIFF whose channels are no colours; None for other files.

    That is one with more channels than Pillow reads, or several that are neither grey and alpha nor colours.
    """
    if sniff(data[:HEAD_BYTES]) != "TIFF":
        return None
    header = read_tiff(data)
    height, width, channels, dtype = _tiff_shape(header)
    are_colours = header.number(262) not in (0, 1) or (channels == 2 and header.number(338) in (1, 2))
    if dtype is None or channels < 2 or (are_colours and channels <= 6):
        return None
    return height, width, channels, dtype


def how_to_keep(data: bytes) -> str:
    """The end of a message about such a TIFF, which was to become a picture; "" for other files."""
    raw = raw_shape_of(data)
    return "" if raw is None else f", or train on all of them: data.channels={raw[2]} data.pixels={raw[3]}"


def sample_format(header: Tiff) -> str:
    """What its numbers are, for messages."""
    known = {1: "unsigned", 2: "signed", 3: "float"}
    return known.get(int(header.number(339, 1)), "complex or unknown")


def _tiff_shape(header: Tiff) -> tuple[int, int, int, str | None]:
    bits, kinds = header.values.get(258, (1,)), header.values.get(339, (1,))
    dtype = DTYPES.get((int(bits[0]), int(kinds[0]))) if len({*bits}) == len({*kinds}) == 1 else None
    return int(header.number(HEIGHT)), int(header.number(WIDTH)), int(header.number(277, 1)), dtype


def read_raw_tiff(data: bytes, limits: Limits, stack: contextlib.ExitStack) -> tuple[np.ndarray, int]:
    """([H, W, C] uint8, uint16 or float32 as they are stored, their orientation as in EXIF).

    stack: holds the memory. Raises Unfit, and whatever decoders raise for damaged files.
    """
    header = read_tiff(data)
    height, width, channels, dtype = _tiff_shape(header)
    predictor, separate = int(header.number(317, 1)), header.number(284, 1) == 2 and channels > 1
    if not width or not height:
        raise ValueError("its directory is missing")
    limits.check((width, height))
    if dtype is None or not 1 <= channels <= MAX_CHANNELS or header.number(262) in (3, 6):
        bits, kind = header.number(258, 1), header.number(339, 1)
        raise Unfit(
            f"the pixels can't be kept as they are: NAME has {channels} channels of {bits:g} bits (sample format "
            f"{kind:g}). Save it as uint8, uint16 or float32 without a palette.",
            "not_convertible",
        )
    if predictor not in (1, 2) or (predictor == 2 and dtype == "float32"):
        raise Unfit(f"NAME is compressed with predictor {predictor}. Save it without one.", "not_convertible")
    stored = np.dtype(dtype).newbyteorder("<" if data[:2] == b"II" else ">")
    decoded = width * height * channels * stored.itemsize
    stack.enter_context(limits.grant(2 * decoded + header.block_bytes(), (width, height), 2 * len(data)))
    parts, across = (channels, 1) if separate else (1, channels)
    array = np.empty((height, width, channels), dtype)
    for part in range(parts):
        grey = _as_grey(data, part, parts, across * stored.itemsize)
        plane = np.asarray(Image.open(io.BytesIO(grey), formats=["TIFF"]))
        if plane.dtype != np.uint8 or plane.shape != (height, width * across * stored.itemsize):
            raise ValueError(f"its rows can't be read: {plane.dtype} {list(plane.shape)}")
        array[..., part : part + across] = plane.view(stored).reshape(height, width, across)
    if predictor == 2:
        # differences along a row, which begin anew in each tile
        step = int(header.number(TILE_WIDTH)) or width
        for left in range(0, width, step):
            np.cumsum(array[:, left : left + step], 1, dtype, out=array[:, left : left + step])
    return array, int(header.number(ORIENTATION, 1))


def _as_grey(data: bytes, part: int, parts: int, across: int) -> bytes:
    """The file with a directory of one channel of bytes: of all of them side by side, or of one of its `parts` planes.

    across: bytes of a pixel.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    word, width, head = ("Q", 8, "Q") if big else ("I", 4, "H")
    (place,) = struct.unpack_from(order + word, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + head, data, place)
    place += struct.calcsize(head)
    # samples, photometric, planar configuration, predictor, sample format; bits of a sample
    entries = {tag: (3, 1, struct.pack(order + "H", 1)) for tag in (277, 262, 284, 317, 339)}
    entries[258] = (3, 1, struct.pack(order + "H", 8))
    tables = b""
    for _ in range(count):
        tag, kind, number = struct.unpack_from(order + "HH" + word, data, place)
        field = data[place + 4 + width : place + 4 + 2 * width]
        place += 4 + 2 * width
        size = SIZES.get(kind, 0)
        if tag in (WIDTH, TILE_WIDTH):
            (value,) = struct.unpack(order + LETTERS[size], field[:size])
            entries[tag] = (4, 1, struct.pack(order + "I", value * across))
        elif tag in TABLES:
            (start,) = struct.unpack(order + word, field) if number * size > width else (None,)
            table = data[start : start + number * size] if start is not None else field[: number * size]
            each = len(table) // parts
            entries[tag] = (kind, number // parts, table[part * each : (part + 1) * each])
        elif tag in KEPT:
            entries[tag] = (kind, number, field)
    end = len(data) + len(data) % 2
    rows = b""
    for tag, (kind, number, value) in sorted(entries.items()):
        if len(value) > width:
            tables, value = tables + value, struct.pack(order + word, end + len(tables))
        rows += struct.pack(order + "HH" + word, tag, kind, number) + value.ljust(width, b"\0")
    end += len(tables)
    directory = struct.pack(order + head, len(entries)) + rows + bytes(width)
    header = data[: 8 if big else 4] + struct.pack(order + word, end)
    return b"".join([header, data[len(header) :], bytes(len(data) % 2), tables, directory])
