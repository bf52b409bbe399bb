"""Writes TIFF files of any number of channels, as no library at hand does: by the specification (TIFF 6.0) alone."""

from __future__ import annotations

import struct
import zlib

import numpy as np

__all__ = ["tiff_bytes"]

# dtype → sample format
FORMATS = {"u": 1, "i": 2, "f": 3}


def tiff_bytes(
    array_HWC: np.ndarray,
    *,
    order: str = "<",
    deflate: bool = False,
    predictor: bool = False,
    separate: bool = False,
    rows: int | None = None,
    tile: int | None = None,
    photometric: int = 1,
    orientation: int | None = None,
    size: tuple[int, int] | None = None,
) -> bytes:
    """A file with these pixels. rows: of a strip. tile: side of a tile. size: (width, height) as claimed."""
    height, width, channels = array_HWC.shape
    planes = [array_HWC[..., [c]] for c in range(channels)] if separate else [array_HWC]
    blocks = [block for plane in planes for block in (_tiles(plane, tile) if tile else _strips(plane, rows or height))]
    data, offsets, counts = b"", [], []
    for block in blocks:
        values = np.diff(block, axis=1, prepend=np.zeros_like(block[:, :1])) if predictor else block
        packed = values.astype(values.dtype.newbyteorder(order)).tobytes()
        packed = zlib.compress(packed) if deflate else packed
        offsets.append(8 + len(data))
        counts.append(len(packed))
        data += packed + b"\0" * (len(packed) % 2)
    claimed = size or (width, height)
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [claimed[0]]),
        257: ("I", [claimed[1]]),
        258: ("H", [array_HWC.dtype.itemsize * 8] * channels),
        259: ("H", [8 if deflate else 1]),
        262: ("H", [photometric]),
        277: ("H", [channels]),
        284: ("H", [2 if separate else 1]),
        317: ("H", [2 if predictor else 1]),
        339: ("H", [FORMATS[array_HWC.dtype.kind]] * channels),
    }
    if tile:
        tags |= {322: ("I", [tile]), 323: ("I", [tile]), 324: ("I", offsets), 325: ("I", counts)}
    else:
        tags |= {273: ("I", offsets), 278: ("I", [rows or height]), 279: ("I", counts)}
    if orientation is not None:
        tags[274] = ("H", [orientation])
    return _file(data, tags, order)


def _strips(plane: np.ndarray, rows: int) -> list[np.ndarray]:
    return [plane[top : top + rows] for top in range(0, len(plane), rows)]


def _tiles(plane: np.ndarray, side: int) -> list[np.ndarray]:
    height, width = plane.shape[:2]
    padded = np.pad(plane, ((0, -height % side), (0, -width % side), (0, 0)))
    return [
        padded[top : top + side, left : left + side] for top in range(0, height, side) for left in range(0, width, side)
    ]


def _file(data: bytes, tags: dict[int, tuple[str, list[int]]], order: str) -> bytes:
    place = 8 + len(data)
    after = place + 2 + 12 * len(tags) + 4
    directory, more = struct.pack(order + "H", len(tags)), b""
    for tag, (letter, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            packed, more = struct.pack(order + "I", after + len(more)), more + packed
        directory += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[letter], len(values)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, place)
    return head + data + directory + bytes(4) + more
