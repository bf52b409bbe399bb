"""Warnings: written to stderr at once, and collected for summaries and JSON output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar

__all__ = ["collected_warnings", "recorded_warnings", "warn", "worded", "wording"]

MAX_LENGTH = 500

# a context variable, so that runs in different threads don't mix their warnings
_recorded: ContextVar[list[str] | None] = ContextVar("recorded", default=None)
_wording: ContextVar[Callable[[str], str]] = ContextVar("wording", default=str)


def warn(message: str) -> None:
    """Write `message` to stderr as one line that begins with "warning:", and record it in `collected_warnings`.

    In a block of `collected_warnings` a repeated message is shown and recorded once; threads started in the block don't
    record. Control characters are escaped and messages cut to 500 characters, since they may hold names of files.
    """
    # cut before it is translated too: it may hold what a server answers
    text = _one_line(worded(message[: 4 * MAX_LENGTH]))
    recorded = _recorded.get()
    if recorded is not None:
        if text in recorded:
            return
        recorded.append(text)
    # a closed stderr must not end a run; with stderr None, print would write to stdout
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The list to which the warnings of the block are added, in order; an inner block has its own list."""
    messages: list[str] = []
    token = _recorded.set(messages)
    try:
        yield messages
    finally:
        _recorded.reset(token)


@contextlib.contextmanager
def wording(translate: Callable[[str], str]) -> Iterator[None]:
    """Within the block, messages are what `translate` makes of them: the command line has options for parameters."""
    token = _wording.set(translate)
    try:
        yield
    finally:
        _wording.reset(token)


def worded(message: str) -> str:
    """A message in the words of whoever reads it."""
    return _wording.get()(message)


def recorded_warnings() -> tuple[str, ...]:
    """The warnings so far in the innermost `collected_warnings` block; empty outside of one."""
    return tuple(_recorded.get() or ())


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in joined)
    return shown if len(shown) <= MAX_LENGTH else shown[: MAX_LENGTH - 1] + "…"
