"""MkDocs hook: `<!-- options: train -->` on a page becomes the option table of `vivace train --help`.

The table is read from what the program prints while the site is built: no page names an option that is gone.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MARKER = re.compile(r"^<!-- options: ([a-z]+) -->$", flags=re.MULTILINE)
# a plain terminal, narrow enough for one column of boxes, which is what is parsed here
TERMINAL = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


@dataclass
class Section:
    """A box of the help: its title, what it says of itself, and (option, text) pairs."""

    title: str
    about: str = ""
    rows: list[list[str]] = field(default_factory=list)


@contextlib.contextmanager
def plain_terminal() -> Iterator[None]:
    """The environment says that the terminal has no colours and 100 columns; as before afterwards."""
    before = dict(os.environ)
    os.environ.update(TERMINAL)
    os.environ.pop("FORCE_COLOR", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def help_of(verb: str) -> str:
    """What `vivace VERB --help` prints."""
    from vivace.cli import main

    # boxes are drawn only where they can be encoded
    written = io.BytesIO()
    printed = io.TextIOWrapper(written, encoding="utf-8")
    with plain_terminal(), contextlib.redirect_stdout(printed):
        status = main([verb, "--help"])
    if status != 0:
        raise ValueError(f"vivace {verb} --help ended with {status}.")
    printed.flush()
    return written.getvalue().decode()


def sections(text: str) -> list[Section]:
    """The boxes of a help text. Raises ValueError where there are none: the parser draws them otherwise then."""
    found: list[Section] = []
    for line in text.splitlines():
        if title := re.match(r"╭─ (.+?) ─+╮?$", line):
            found.append(Section(title[1]))
        elif line.startswith("│") and found:
            _read(line.removesuffix("│").removeprefix("│ ").rstrip(), found[-1])
    if not any(section.rows for section in found):
        raise ValueError("the help has no option in a box: docs/hooks/options.py must learn to read it.")
    return found


def _read(line: str, section: Section) -> None:
    if re.fullmatch(r"─+", line):
        # a rule ends what the group says of itself
        section.about, section.rows = " ".join(part for row in section.rows for part in row if part), []
    elif line.startswith(" "):
        section.rows[-1][1] = f"{section.rows[-1][1]} {line.strip()}".strip()
    elif line:
        option, _, words = line.partition("  ")
        section.rows.append([option, words.strip()])


def table_of(verb: str) -> str:
    """The option tables of a verb, as Markdown."""
    lines = []
    for section in sections(help_of(verb)):
        rows = [row for row in section.rows if not row[0].startswith("-h,")]
        if not rows:
            continue
        about = f": {section.about[0].lower()}{section.about[1:].rstrip('.')}" if section.about else ""
        lines += ["", f"**{section.title.capitalize()}**{about}", "", "| option | what it does |", "| --- | --- |"]
        lines += [f"| {_code(option)} | {_cell(words)} |" for option, words in rows]
    return "\n".join(lines).strip()


def _code(option: str) -> str:
    return f'<code class="option">{html.escape(option).replace("|", "&#124;")}</code>'


def _cell(words: str) -> str:
    words = re.sub(r"([<>*_|\[\]])", r"\\\1", words)
    return re.sub(r"(?<!\S)(--[a-z-]+[a-z])", r'<code class="option">\1</code>', words)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return MARKER.sub(lambda match: table_of(match[1]), markdown)
