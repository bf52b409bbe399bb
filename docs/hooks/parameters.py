"""Griffe extension: what a docstring says of a parameter, `name: …`, becomes an item of a list in the reference.

In the sources these stand in running text, which is short to read beside the code and long in a browser.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import griffe

RAISES = re.compile(r"(?<=[.\n]) *(Raises |Source: )")


class Parameters(griffe.Extension):
    """Rewrites the docstrings of functions, and of classes for their fields."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        _rewrite(func, [parameter.name for parameter in func.parameters])

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        made = cls.members.get("__init__")
        names = list(cls.members)
        if isinstance(made, griffe.Function):
            names += [parameter.name for parameter in made.parameters]
        _rewrite(cls, names)


def _rewrite(of: griffe.Object, names: Iterable[str]) -> None:
    if of.docstring is not None:
        of.docstring.value = as_list(of.docstring.value, names)


def as_list(text: str, names: Iterable[str]) -> str:
    """`text` with each "name: …" at the start of a sentence as an item, and "Raises …" as a paragraph."""
    plain = [name for name in names if re.fullmatch(r"[a-z]\w*", name)]
    if not plain:
        return text
    name = f"(?:{'|'.join(plain)})"
    start = rf"(?:^|(?<=[.;])\s+|(?<=\n))({name}(?:, {name})*): "
    first = re.search(start, text, flags=re.MULTILINE)
    if first is None:
        return text
    before, rest = text[: first.start()], text[first.start() :]
    # what follows a blank line is another paragraph, and stays one
    listed, blank, after = rest.strip().partition("\n\n")
    items = re.sub(start, _item, "\n" + " ".join(listed.split()))
    items = RAISES.sub(r"\n\n\1", items)
    return f"{before.rstrip()}\n\n{items.strip()}{blank}{as_list(after, plain)}"


def _item(match: re.Match[str]) -> str:
    return f"\n- `{match[1].replace(', ', '`, `')}`: "
