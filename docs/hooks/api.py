"""MkDocs hook: `<!-- api -->` on a page becomes an entry for each public name of the package, functions first.

The names and where they live are those of `vivace.__all__`, so that the page never lacks a new one. The texts are
docstrings, which mkdocstrings reads out of the sources.
"""

from __future__ import annotations

from typing import Any

MARKER = "<!-- api -->"
# what is wrapped where it is public is documented where it is written: sources are read, not run
WRITTEN_IN = {"train": "vivace.training.train"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(MARKER, entries()) if MARKER in markdown else markdown


def entries() -> str:
    """Markdown with an entry for each public name: its place in the package, under the name that users write."""
    from vivace import _HOMES, __all__

    functions = [name for name in __all__ if name[0].islower() and name in _HOMES]
    classes = [name for name in __all__ if name[0].isupper() and name in _HOMES]
    parts = ["## Functions", *map(_entry, functions), "## Classes", *map(_entry, classes)]
    return "\n\n".join(parts)


def _entry(name: str) -> str:
    from vivace import _HOMES

    # the anchor is the public name; the object's own one leads to its place in the sources
    return "\n".join(
        [
            f'<span id="vivace.{name}"></span>',
            "",
            f"::: {WRITTEN_IN.get(name, _HOMES[name])}.{name}",
            "    options:",
            f"      heading: vivace.{name}",
            f"      toc_label: {name}",
        ]
    )
