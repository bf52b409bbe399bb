"""Messages that vivace wrote in English, in another language: by a table of sentences with gaps.

Warnings, findings and reasons are recorded as they were said, with the names and numbers of their run in them. A
sentence is found again by the words between its gaps; one that is in no table stays as it is. Gaps are found from left
to right, each as short as the next words allow, without going back: whatever a stranger writes takes linear time.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["in_language", "phrases_of"]

TEMPLATES = Path(__file__).parent / "templates"
GAP = "{}"
# {0}, or {0:t} for a part that is translated itself
PLACE = re.compile(r"\{(\d)(:t)?\}")
# the end of a sentence; dots in numbers and file names have no space behind them
SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z`{0-9])")
FULL_STOP = "。"
# a sentence in a part of a part
MAX_DEPTH = 3
# words of fewer letters, as of "{} and {}", are found in any text: they count in parts of sentences alone
FEW_LETTERS = 12


def in_language(text: str, lang: str, depth: int = 0) -> str:
    """The text in a language: sentence by sentence, else as a whole; what is in no table stays in English."""
    if lang == "en" or not text or depth > MAX_DEPTH:
        return text
    if depth and ", " in text:
        # a list, such as "2 truncated, 1 empty"
        items = [_translated(one, lang, depth) for one in text.split(", ")]
        if None not in items:
            return "、".join(filter(None, items))
    sentences = SENTENCE.split(text)
    told = [_translated(one, lang, depth) for one in sentences]
    if None in told and (whole := _translated(text, lang, depth)) is not None:
        return whole
    shown = [new or old for new, old in zip(told, sentences, strict=True)]
    return "".join(f"{one}{'' if one.endswith(FULL_STOP) else ' '}" for one in shown[:-1]) + shown[-1]


@functools.cache
def phrases_of(lang: str) -> tuple[tuple[tuple[str, ...], str], ...]:
    """((the words between the gaps, the sentence in the language), …); those with the most words first."""
    try:
        table = json.loads((TEMPLATES / f"messages.{lang}.json").read_text("utf-8"))
    except FileNotFoundError:
        table = {}
    split = [(tuple(english.split(GAP)), other) for english, other in table.items()]
    return tuple(sorted(split, key=lambda row: -sum(map(len, row[0]))))


def _translated(text: str, lang: str, depth: int) -> str | None:
    for words, other in phrases_of(lang):
        if len(words) > 1 and not depth and sum(map(len, words)) < FEW_LETTERS:
            continue
        if text.startswith(words[0]) and (parts := _gaps(text, words)) is not None:
            return PLACE.sub(functools.partial(_filled, parts, lang, depth), other)
    return None


def _gaps(text: str, words: Sequence[str]) -> list[str] | None:
    """What fills the gaps between these words; None if they are not there, or nothing is between two of them."""
    if len(words) == 1:
        return [] if text == words[0] else None
    end = len(text) - len(words[-1])
    if not text.endswith(words[-1]):
        return None
    place, parts = len(words[0]), []
    for word in words[1:-1]:
        # a gap has a letter at least
        found = text.find(word, place + 1, end)
        if found < 0:
            return None
        parts.append(text[place:found])
        place = found + len(word)
    return None if place >= end else [*parts, text[place:end]]


def _filled(parts: Sequence[str], lang: str, depth: int, place: re.Match[str]) -> str:
    part = parts[int(place[1])]
    return in_language(part, lang, depth + 1) if place[2] else part
