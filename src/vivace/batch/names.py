"""Names of files in tables, which hold text: a name may hold bytes that are no text."""

from __future__ import annotations

import os
import re

__all__ = ["is_escaped", "name_of_written", "written_name"]

# what `written_name` makes of a byte, and what a name may hold itself that looks the same
ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
LOOKALIKE = re.compile(r"\\(?=x[0-9a-f]{2})")


def written_name(name: str) -> str:
    r"""The name as valid text: a byte that is not UTF-8 as \xe9, and \ before what looks so as \x5c: it can be undone.

    name: as `os.fsdecode` gives it.
    """
    if name.isascii() and "\\x" not in name:
        return name
    return "".join(
        f"\\x{ord(char) - 0xDC00:02x}" if 0xDC80 <= ord(char) <= 0xDCFF else char if _is_text(char) else "\ufffd"
        for char in LOOKALIKE.sub(r"\\x5c", name)
    )


def name_of_written(text: str) -> str:
    """The name of the file that `written_name` wrote so."""
    return os.fsdecode(
        b"".join(
            bytes.fromhex(part) if place % 2 else os.fsencode(part) for place, part in enumerate(ESCAPE.split(text))
        )
    )


def is_escaped(name: str) -> bool:
    """Whether `written_name` changes it."""
    return written_name(name) != name


def _is_text(char: str) -> bool:
    # half of a pair, which only names on Windows and names in a program hold
    return not 0xD800 <= ord(char) <= 0xDFFF
