"""What a long export is doing, on stderr: a compiler may be silent for minutes."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

from vivace.errors import printable

__all__ = ["doing", "reporting"]

# between two lines, and before the first
SECONDS = 60.0

_stage: ContextVar[list[str] | None] = ContextVar("stage", default=None)


def doing(stage: str) -> None:
    """Say what begins now, such as "tracing the network"; it is shown if it is still so a minute later."""
    current = _stage.get()
    if current is not None:
        current[0] = stage


@contextlib.contextmanager
def reporting(what: str) -> Iterator[None]:
    """Each minute that the block goes on, a line on stderr says what it is doing."""
    current, ended, began = [what], threading.Event(), time.monotonic()

    def report() -> None:
        while not ended.wait(SECONDS):
            # a closed stderr must not end an export
            with contextlib.suppress(OSError, ValueError, AttributeError):
                print(printable(f"{what}: {current[0]}, {time.monotonic() - began:.0f} s"), file=sys.stderr, flush=True)

    thread = threading.Thread(target=report, daemon=True, name="vivace-progress")
    token = _stage.set(current)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        _stage.reset(token)
        thread.join()
