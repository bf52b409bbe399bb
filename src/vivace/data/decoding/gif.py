"""Reads the size of a GIF's first picture before Pillow opens the file and allocates memory for it."""

from __future__ import annotations

import struct

from vivace.data.decoding.headers import Unfit

__all__ = ["check_gif"]

MAX_GIF_PREFIX = 4 << 20


def check_gif(data: bytes) -> tuple[int, int]:
    """(width, height) that Pillow allocates as soon as it opens a GIF: the canvas with its first picture.

    Parses the file exactly as Pillow does, including blocks that end too soon. Raises Unfit if the first picture comes
    after megabytes of comments, or if there is none.
    """
    place = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    while place < min(len(data), MAX_GIF_PREFIX) and data[place] not in b",;":
        mark, label, place = data[place], data[place + 1 : place + 2], place + 1
        if mark != 0x21:
            continue
        start, place = place + 1, _after_block(data, place + 1)
        if label == b"\xfe":
            place = start
        elif label == b"\xff" and data[start + 1 : place].startswith(b"NETSCAPE2.0"):
            place = _after_block(data, place)
        while place < len(data) and data[place]:
            place = _after_block(data, place)
            if place > MAX_GIF_PREFIX:
                break
        place += 1
    if place >= MAX_GIF_PREFIX:
        raise Unfit(f"over {MAX_GIF_PREFIX:,} bytes of comments precede its picture. Save it again.")
    if len(data) < place + 9 or data[place] != 0x2C:
        raise Unfit(
            "the image is damaged: NAME (it ends before its pixels). Restore it from a copy, or leave it out.",
            "truncated",
        )
    left, top, width, height = struct.unpack_from("<4H", data, place + 1)
    canvas = struct.unpack_from("<2H", data, 6)
    return max(canvas[0], left + width), max(canvas[1], top + height)


def _after_block(data: bytes, place: int) -> int:
    return place + 1 + (data[place] if place < len(data) else 0)
