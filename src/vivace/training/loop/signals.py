"""SIGINT and SIGTERM: the first one lets the loop save and stop, the second one stops the process at once.

Outside of the loop, where nothing waits for a step to end, the first one is raised.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["StopSignals", "Stopped", "raised_signals"]


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM. Not an Exception: what tries one thing after the other would take it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def raised_signals() -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM raises Stopped, and the second one stops the process at once."""
    process, received = os.getpid(), False
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if os.getpid() != process:
            # a forked worker ends as it would have done
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if received:
            os._exit(128 + number)
        received = True
        raise Stopped(number)

    # what the parent has asked to ignore, as nohup does, stays ignored
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopSignals:
    """Within its `with` block, `received` is the first signal that arrived, or None."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # only the main thread may set handlers; in other threads signals are left to the program
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            # the second signal: exit without clean-up, which might hang
            os._exit(128 + number)
        self.received = number
