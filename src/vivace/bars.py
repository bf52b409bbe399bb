"""A progress bar on stderr for work that counts (no torch here: a prediction takes longer to import it than to run)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["counting_bar", "terminal"]


def counting_bar(
    description: str, *, quiet: bool = False
) -> tuple[Callable[[int, int | None], None], Callable[[], None]]:
    """(progress(done, total), close): a progress bar if stderr is a terminal. total: None, unknown."""
    if quiet or not sys.stderr.isatty():
        return (lambda done, total: None), (lambda: None)
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


def terminal() -> Any:
    """stderr without the command line's filter for control characters, which the display needs."""
    return getattr(sys.stderr, "unescaped", sys.stderr)
