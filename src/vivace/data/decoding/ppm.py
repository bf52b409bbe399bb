"""Decodes PBM, PGM and PPM by numpy, because Pillow reads many variants pixel by pixel in Python."""

from __future__ import annotations

import re

import numpy as np

__all__ = ["decode_ppm", "read_ppm_header"]

# a header may hold comments; a longer one is refused
MAX_HEADER = 65536
TOKEN = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*([0-9]{1,9})(?=[\s#])")
COMMENT = re.compile(rb"#[^\r\n]*")
BLANKS = b"\t\n\v\f\r "
# values looked up at once; as an index each takes 8 bytes
STRIP = 1 << 18
BITS, COLOUR = b"14", b"36"


def read_ppm_header(data: bytes) -> tuple[int, int, int, int]:
    """(width, height, maximum value, offset of the pixels). Raises ValueError for an invalid header."""
    kind, numbers, place = data[1:2], [], 2
    head = data[:MAX_HEADER]
    for _ in range(2 if kind in BITS else 3):
        match = TOKEN.match(head, place)
        if match is None:
            raise ValueError(f"no size in the first {MAX_HEADER:,} bytes")
        numbers.append(int(match[1]))
        place = match.end()
    width, height, high = (*numbers, 1)[:3]
    if not 0 < high < 65536:
        raise ValueError(f"the maximum value is {high}")
    return width, height, high, place + 1


def decode_ppm(data: bytes) -> np.ndarray:
    """uint8 [H, W, 1 | 3] of a PBM, PGM or PPM file, scaled so that its maximum value becomes 255.

    Raises ValueError for an invalid or truncated file.
    """
    width, height, high, place = read_ppm_header(data)
    kind = data[1:2]
    channels = 3 if kind in COLOUR else 1
    count = width * height * channels
    if kind in b"123":
        values = _plain(data[place:], count, high, bits=kind in BITS)
    elif kind in BITS:
        row = (width + 7) // 8
        packed = _whole(np.frombuffer(data, np.uint8, offset=min(place, len(data))), row * height)
        values = np.unpackbits(packed.reshape(height, row), axis=1)[:, :width].reshape(-1)
    else:
        dtype = np.dtype(np.uint8 if high < 256 else ">u2")
        usable = max(0, len(data) - place) // dtype.itemsize
        values = _whole(np.frombuffer(data, dtype, usable, min(place, len(data))), count)
    if kind in BITS:
        # 1 is black
        table = np.array([255, 0], np.uint8)
    elif high == 255:
        return values.astype(np.uint8, copy=False).reshape(height, width, channels)
    else:
        table = np.rint(np.minimum(np.arange(65536 if high > 255 else 256), high) / high * 255).astype(np.uint8)
    tones = np.empty(count, np.uint8)
    for start in range(0, count, STRIP):
        tones[start : start + STRIP] = table[values[start : start + STRIP]]
    return tones.reshape(height, width, channels)


def _plain(text: bytes, count: int, high: int, *, bits: bool) -> np.ndarray:
    """The values of a plain (text) file; bits need no blanks between them."""
    if b"#" in text:
        text = COMMENT.sub(b"", text)
    if text.translate(None, b"0123456789" + BLANKS):
        raise ValueError("it holds something other than numbers")
    if bits:
        values = np.frombuffer(text.translate(None, BLANKS), np.uint8) - ord("0")
    else:
        values = np.fromstring(text, np.uint32, sep=" ") if text.strip() else np.zeros(0, np.uint32)
    values = _whole(values, count)
    if values.max(initial=0) > high:
        raise ValueError("a value is too high")
    return values


def _whole(values: np.ndarray, count: int) -> np.ndarray:
    if len(values) < count:
        raise ValueError(f"it holds only {len(values):,} of {count:,} values")
    return values[:count]
