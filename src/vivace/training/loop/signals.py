"""SIGINT and SIGTERM: the first one lets the loop save and stop, the second one stops the process at once.

Outside of the loop, where nothing waits for a step to end, the first one is raised.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from vivace.signals import handled

__all__ = ["StopSignals", "Stopped", "raised_signals"]

STOPS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM. Not an Exception: what tries one thing after the other would take it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def raised_signals() -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM raises Stopped, and the second one stops the process at once."""
    received = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            os._exit(128 + number)
        received = True
        raise Stopped(number)

    with handled(dict.fromkeys(STOPS, handle)):
        yield


class StopSignals:
    """Within its `with` block, `received` is the first signal that arrived, or None."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._handling = contextlib.ExitStack()

    def __enter__(self) -> StopSignals:
        # a run that goes on without a terminal is to be stopped too
        self._handling.enter_context(handled(dict.fromkeys(STOPS, self._handle), even_ignored=True))
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            # the second signal: exit without clean-up, which might hang
            os._exit(128 + number)
        self.received = number
