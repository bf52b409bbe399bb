"""Marks in files, by which vivace recognizes what it wrote unless somebody changed it (no torch here).

A PNG has a comment with the SHA-256 of the rest; a page or a card ends in an HTML comment with that of what is before.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib

__all__ = ["MARKED", "is_marked", "marked", "marked_text"]

# sizes in a PNG: the comment, and the end chunk
MARK_BYTES, PNG_END = 83, 12
TEXT_MARK = re.compile(rb"<!-- written by vivace, sha256 ([0-9a-f]{64}) -->\n")
TEXT_MARK_BYTES = 100
# extensions of files that may bear a mark
MARKED = (".png", ".html", ".htm", ".md")


def marked(png: bytes) -> bytes:
    """The PNG with a comment that holds its SHA-256."""
    comment = b"tEXtvivace\0" + hashlib.sha256(png).hexdigest().encode()
    chunk = struct.pack(">I", len(comment) - 4) + comment + struct.pack(">I", zlib.crc32(comment))
    return png[:-PNG_END] + chunk + png[-PNG_END:]


def marked_text(text: bytes) -> bytes:
    """An HTML page or Markdown text with a comment at its end that holds its SHA-256."""
    return text + f"<!-- written by vivace, sha256 {hashlib.sha256(text).hexdigest()} -->\n".encode()


def is_marked(data: bytes) -> bool:
    """Whether vivace marked these very bytes."""
    if data.startswith(b"\x89PNG"):
        return len(data) > MARK_BYTES + PNG_END and data == marked(data[: -MARK_BYTES - PNG_END] + data[-PNG_END:])
    found = TEXT_MARK.fullmatch(data[-TEXT_MARK_BYTES:])
    return found is not None and data == marked_text(data[:-TEXT_MARK_BYTES])
