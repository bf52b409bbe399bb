"""The words of a report, from templates/en.json and zh.json. Names and messages of vivace's own stay as they are."""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

from vivace.errors import ConfigError, nearest

__all__ = ["LANGUAGES", "NO_BREAK", "translator", "words_of"]

LANGUAGES = ("en", "zh")
TEMPLATES = Path(__file__).parent / "templates"
# marks between which text has a direction of its own
ISOLATE, POP = "\u2068", "\u2069"
NO_BREAK = "\u00a0"
RIGHT_TO_LEFT = ("R", "AL")


@functools.cache
def words_of(lang: str) -> dict[str, str]:
    """key → words, with {names} of values in them."""
    words: dict[str, str] = json.loads((TEMPLATES / f"{lang}.json").read_text("utf-8"))
    return words


def translator(lang: str) -> Callable[..., str]:
    """t(key, name=value …): the words of a key. Values whose direction is right to left keep it to themselves.

    Raises ConfigError for an unknown language.
    """
    if lang not in LANGUAGES:
        raise ConfigError(f"lang is unknown: got {lang!r:.80}.{nearest(str(lang), LANGUAGES)} Give en or zh.")
    words = words_of(lang)

    def t(key: str, **values: object) -> str:
        # a number and its sign stay on one line
        text = words[key].replace(" %", f"{NO_BREAK}%")
        return text.format(**{name: _isolated(str(value)) for name, value in values.items()})

    return t


def _isolated(value: str) -> str:
    if value.isascii() or not any(unicodedata.bidirectional(letter) in RIGHT_TO_LEFT for letter in value):
        return value
    return f"{ISOLATE}{value}{POP}"
