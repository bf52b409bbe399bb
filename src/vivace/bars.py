"""Progress on stderr for work that counts (no torch here: a prediction takes longer to import it than to run)."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

__all__ = ["CountingBar", "terminal"]

# between lines of progress
LINE_SECONDS = 30.0


class CountingBar:
    """Within its `with` block: a bar if stderr is a terminal; elsewhere, as in a log, a line every `LINE_SECONDS`.

    Work that takes less leaves nothing in a log. quiet: nothing is shown.
    """

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self._shown: _Bar | _Lines | None = None
        if not quiet:
            self._shown = _Bar(name) if sys.stderr.isatty() else _Lines(name)

    def __enter__(self) -> CountingBar:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._shown, _Bar):
            self._shown.close()

    def progress(self, done: int, total: int | None) -> None:
        """So much is done. total: None, unknown."""
        if self._shown is not None:
            self._shown.progress(done, total)

    def stage(self, name: str, told: str = "", unit: str = "images") -> None:
        """From now on something else is counted. told: what there is to say of it, which a log gets as a line."""
        if self._shown is not None:
            self._shown.stage(name, told, unit)


class _Bar:
    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(file=terminal(), stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(name, total=None)
        self._bar.start()

    def progress(self, done: int, total: int | None) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def stage(self, name: str, told: str, unit: str) -> None:
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(f"{name}: {told}" if told else name, total=None)

    def close(self) -> None:
        self._bar.stop()


class _Lines:
    """Progress as lines now and then."""

    def __init__(self, name: str) -> None:
        self._name, self._unit = name, "images"
        self._done: int | None = None
        self._told = 0.0

    def progress(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._done is None or done < self._done:
            # this one's speed has nothing to do with what an earlier run did, or with what was counted before
            self._done, self._told = done, now
        if (passed := now - self._told) < LINE_SECONDS:
            return
        of = "" if total is None else f" of {total:,}"
        rate = (done - self._done) / passed
        _print(f"{self._name}: {done:,}{of}, {rate:{',.0f' if rate >= 10 else '.2g'}} {self._unit}/s")
        self._done, self._told = done, now

    def stage(self, name: str, told: str, unit: str) -> None:
        self._name, self._unit = name, unit
        self._done, self._told = 0, time.monotonic()
        if told:
            _print(f"{name}: {told}")


def _print(line: str) -> None:
    # a log on a full disk must not end a run
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def terminal() -> Any:
    """stderr without the command line's filter for control characters, which the display needs."""
    return getattr(sys.stderr, "unescaped", sys.stderr)
