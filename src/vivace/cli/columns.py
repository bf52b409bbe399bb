"""Columns of text in a terminal, which shows a Chinese, Japanese or Korean character two columns wide."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

__all__ = ["columns_of", "left", "right", "widest"]


def columns_of(text: str) -> int:
    """How many columns a terminal takes for printable text: marks that are drawn onto the letter before take none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def widest(texts: Iterable[str], *, least: int = 0) -> int:
    """The columns of the widest, at least so many."""
    return max([least, *map(columns_of, texts)])


def left(text: str, width: int) -> str:
    """Text at the left of so many columns."""
    return text + " " * (width - columns_of(text))


def right(text: str, width: int) -> str:
    """Text at the right of so many columns."""
    return " " * (width - columns_of(text)) + text
