"""A `Page` as one HTML file: Jinja2 templates, every value escaped, at most 3 MB."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.errors import MissingExtra
from vivace.reporting.page.compared import Versus
from vivace.reporting.page.consistency import MAX_SHOWN
from vivace.reporting.page.facts import Answers, Page
from vivace.reporting.page.phrases import in_language
from vivace.reporting.page.words import NO_BREAK, translator, words_of

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["MAX_BYTES", "check_renders", "environment", "render", "render_versus", "sections_of", "told_or_own"]

TEMPLATES = Path(__file__).parent / "templates"
MAX_BYTES = 3_000_000
# with more classes a table of the pairs says more than a matrix; up to the first number cells have numbers
MAX_NUMBERED, MAX_MATRIX = 25, 110
# rows of the list of confused pairs, beside a matrix and in place of one
NUM_PAIRS = {"table": 0, "squares": 15, "list": 40}
NUM_ROWS_OPEN = 25


def render(page: Page, *, lang: str = "en") -> str:
    """The HTML of a page, in English (en) or Chinese (zh).

    Where it would have more than 3 MB, pictures and rows of classes are left out until it has less.
    Raises MissingExtra without Jinja2, ConfigError for an unknown language.
    """
    translator(lang)
    html = _rendered(page, lang)
    for share in (0.5, 0.2, 0.0):
        # of UTF-8 a character has up to four bytes
        if len(html.encode("utf-8", "backslashreplace")) <= MAX_BYTES:
            break
        html = _rendered(_smaller(page, share), lang)
    return html


def render_versus(versus: Versus, *, lang: str = "en") -> str:
    """The HTML of two runs side by side; as `render`."""
    t, template = translator(lang), environment().get_template("compare.html")
    for share in (1.0, 0.5, 0.0):
        html = template.render(
            versus=versus,
            t=t,
            split=functools.partial(_split, t),
            duration=functools.partial(_duration, t),
            say=functools.partial(in_language, lang=lang),
            lang=lang,
            version=metadata.version("vivace"),
            num_shown=math.ceil(share * max(len(versus.only_first), len(versus.only_second))),
            NUM_ROWS_OPEN=NUM_ROWS_OPEN,
            MAX_SHOWN=MAX_SHOWN,
        )
        if len(html.encode("utf-8", "backslashreplace")) <= MAX_BYTES:
            break
    return html


def check_renders() -> None:
    """Raise MissingExtra without Jinja2."""
    environment()


def sections_of(page: Page) -> tuple[str, ...]:
    """The names of the sections that the page has, as the anchors in it."""
    answers = page.answers
    has = {
        "summary": True,
        "search": page.search is not None,
        "curves": bool(page.curves),
        "mistakes": answers is not None,
        "confusion": answers is not None and bool(answers.cells),
        "classes": answers is not None and bool(answers.rows),
        "slices": answers is not None and answers.slices is not None,
        "reliability": answers is not None and answers.after is not None,
        "reliance": answers is not None and answers.reliance is not None,
        "robustness": bool(page.corrupted or page.attacked),
        "audit": page.findings is not None,
        "made": True,
        "missing": bool(page.not_measured),
    }
    return tuple(name for name, there in has.items() if there)


def _smaller(page: Page, share: float) -> Page:
    """The page with that share of its pictures and rows."""
    answers = page.answers
    if answers is not None:
        answers = dataclasses.replace(
            answers,
            cells=tuple(dataclasses.replace(cell, pictures=()) for cell in answers.cells[: int(share * 2000) + 100]),
            rows=answers.rows[: int(share * len(answers.rows)) + 50],
            mistakes=answers.mistakes[: int(share * len(answers.mistakes))],
        )
    return dataclasses.replace(page, answers=answers, recipe=page.recipe if share else None)


def _rendered(page: Page, lang: str) -> str:
    template = environment().get_template("page.html")
    t = translator(lang)
    return template.render(
        page=page,
        t=t,
        split=functools.partial(_split, t),
        told_or_own=functools.partial(told_or_own, t),
        duration=functools.partial(_duration, t),
        say=functools.partial(in_language, lang=lang),
        lang=lang,
        version=metadata.version("vivace"),
        sections=sections_of(page),
        matrix=_matrix(page.answers),
        NUM_ROWS_OPEN=NUM_ROWS_OPEN,
        MAX_SHOWN=MAX_SHOWN,
    )


def _split(t: Callable[..., str], name: str) -> str:
    """What a split is called; one of a foreign bundle may have any name."""
    return t(f"split.{name}") if f"split.{name}" in words_of("en") else name


def told_or_own(t: Callable[..., str], name: str, kind: str = "") -> str:
    """The word for a name of a kind such as "fact.", or the name itself, as that of an attack."""
    return t(kind + name) if kind + name in words_of("en") else name


def _duration(t: Callable[..., str], seconds: float) -> str:
    """Such as 59.8 s, 12.4 min, 1.5 h."""
    unit, count = ("seconds", 1) if seconds < 120 else ("minutes", 60) if seconds < 7200 else ("hours", 3600)
    return t(unit, value=f"{seconds / count:,.1f}".removesuffix(".0"))


def _matrix(answers: Answers | None) -> dict[str, Any]:
    """How the pairs of classes are shown: as a table with numbers, as small squares, or as a list."""
    if answers is None or not answers.cells:
        return {}
    count = len(answers.classes)
    kind = "table" if count <= MAX_NUMBERED else "squares" if count <= MAX_MATRIX else "list"
    wrong = sorted((cell for cell in answers.cells if not cell.right), key=lambda cell: -cell.count)
    return {
        "kind": kind,
        "cells": {(cell.true, cell.predicted): cell for cell in answers.cells},
        "pairs": wrong[: NUM_PAIRS[kind]],
    }


@functools.cache
def environment() -> Environment:
    try:
        import jinja2
    except ImportError:
        raise MissingExtra("jinja2", "report", "writing a report") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "fixed": fixed, "count": count_of}
    return environment


def percent(value: float, digits: int = 1) -> str:
    """A fraction as a percentage; all and nothing have no decimals."""
    return f"{100 * value:.{digits if 0 < value < 1 else 0}f}{NO_BREAK}%"


def fixed(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def count_of(value: float | None) -> str:
    """A whole number with separators, or a dash."""
    return "–" if value is None else f"{value:,.0f}"
