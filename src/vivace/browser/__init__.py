"""What the pages that classify an image in a browser share: how they look, and how an image is given to them."""

from __future__ import annotations

import functools
from pathlib import Path

__all__ = ["SHARED", "shared_file"]

STATIC = Path(__file__).parent / "static"
# style.css: the look, light and dark; image.js: an image that is chosen, dropped or pasted, and two languages
SHARED = ("style.css", "image.js")


@functools.cache
def shared_file(name: str) -> bytes:
    """The contents of one of `SHARED`."""
    assert name in SHARED
    return (STATIC / name).read_bytes()
