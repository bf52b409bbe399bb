"""Reads values of files that anybody may have written: what has another type or size counts as missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vivace.errors import printable

__all__ = ["clean", "items", "mapping", "number", "text", "texts", "whole"]

MAX_TEXT = 300
LARGEST = 1e15


def mapping(values: Any, key: str) -> Mapping[str, Any]:
    """The mapping of a key; an empty one if there is none."""
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def items(values: Any, key: str) -> Sequence[Any]:
    """The list of a key; an empty one if there is none."""
    found = values.get(key) if isinstance(values, Mapping) else None
    return found if isinstance(found, list | tuple) else ()


def number(values: Any, key: str, low: float = -LARGEST, high: float = LARGEST) -> float | None:
    """The finite number of a key, if it lies in [low, high]."""
    found = values.get(key) if isinstance(values, Mapping) else None
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    # whole numbers may have more digits than a float can hold
    return float(found) if low <= found <= high and math.isfinite(found) else None


def whole(values: Any, key: str) -> int | None:
    """The count of a key."""
    found = number(values, key, 0)
    return None if found is None else round(found)


def text(values: Any, key: str, limit: int = MAX_TEXT) -> str | None:
    """The text of a key, printable and cut; None for an empty one too."""
    found = values.get(key) if isinstance(values, Mapping) else None
    return clean(found, limit) if isinstance(found, str) and found else None


def texts(values: Any, key: str, *, most: int, limit: int = MAX_TEXT) -> tuple[str, ...]:
    """The texts of a list, at most so many."""
    return tuple(clean(one, limit) for one in items(values, key)[:most] if isinstance(one, str))


def clean(value: str, limit: int = MAX_TEXT) -> str:
    """On one line: control characters and marks that change the text's direction are shown as escapes; cut."""
    shown = printable(value[: 2 * limit])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
