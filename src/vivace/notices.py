"""Warnings: shown on stderr at once, and kept for the summary and the JSON of whoever collects them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ["collected_warnings", "recorded_warnings", "warn"]

MAX_LENGTH = 500

# a context variable: two runs in two threads of one program do not mix their warnings
_recorded: ContextVar[list[str] | None] = ContextVar("recorded", default=None)


def warn(message: str) -> None:
    """Show `message` on stderr as one line that starts with "warning:", and record it where warnings are collected.

    Within `collected_warnings` the same message is shown and recorded once; threads started in the block do not record.
    What a terminal would obey is escaped and a message of more than 500 characters cut: it may hold names of files.
    """
    text = _one_line(message)
    recorded = _recorded.get()
    if recorded is not None:
        if text in recorded:
            return
        recorded.append(text)
    # a closed stderr must not end a run; without one, print would write to stdout
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The list that the warnings of the block are added to, in order; those of a block inside go to its own list."""
    messages: list[str] = []
    token = _recorded.set(messages)
    try:
        yield messages
    finally:
        _recorded.reset(token)


def recorded_warnings() -> tuple[str, ...]:
    """The warnings of the innermost `collected_warnings` block so far; none outside of one."""
    return tuple(_recorded.get() or ())


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in joined)
    return shown if len(shown) <= MAX_LENGTH else shown[: MAX_LENGTH - 1] + "…"
