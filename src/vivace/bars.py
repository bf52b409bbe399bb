"""A progress bar on stderr for work that counts (no torch here: a prediction takes longer to import it than to run)."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["counting_bar", "terminal"]

# between lines of progress
LINE_SECONDS = 30.0


def counting_bar(
    description: str, *, quiet: bool = False, lines: bool = False
) -> tuple[Callable[[int, int | None], None], Callable[[], None]]:
    """(progress(done, total), close): a progress bar if stderr is a terminal. total: None, unknown.

    lines: elsewhere, as in a log, a line every `LINE_SECONDS`, of work that may take hours.
    """
    if quiet or not sys.stderr.isatty():
        return (_Lines(description) if lines and not quiet else lambda done, total: None), (lambda: None)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn(description),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=terminal(), stderr=True),
        transient=True,
    )
    task = bar.add_task(description, total=None)
    bar.start()

    def progress(done: int, total: int | None) -> None:
        bar.update(task, completed=done, total=total)

    return progress, bar.stop


class _Lines:
    """Progress as lines now and then."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._done: int | None = None
        self._told = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._done is None:
            # what an earlier run did is not counted as this one's speed
            self._done, self._told = done, now
        if (passed := now - self._told) < LINE_SECONDS:
            return
        of = "" if total is None else f" of {total:,}"
        line = f"{self._description}: {done:,}{of}, {(done - self._done) / passed:,.0f} images/s"
        # a log on a full disk must not end a run
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)
        self._done, self._told = done, now


def terminal() -> Any:
    """stderr without the command line's filter for control characters, which the display needs."""
    return getattr(sys.stderr, "unescaped", sys.stderr)
