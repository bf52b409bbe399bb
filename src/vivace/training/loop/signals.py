"""SIGINT and SIGTERM outside of the loop, where nothing waits for a step to end: they are raised."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from vivace.signals import STOPS, handled

__all__ = ["Stopped", "raised_signals"]


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
