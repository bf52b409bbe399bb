"""Signals while a server starts: SIGTERM and Ctrl-C end it as they do later, and SIGHUP is remembered."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from vivace import systems

__all__ = ["Hangups", "Stopped", "hangups_remembered", "stops_raised"]


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGINT, whose number it has. No Exception, which could be taken for the failure of a bundle."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Hangups:
    """A handler of SIGHUP that notes whether one came."""

    came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True


@contextlib.contextmanager
def hangups_remembered() -> Iterator[Hangups]:
    """Within the block SIGHUP, which would end the process, is noted; an inner block has the outer one's notes.

    In other threads than the main one nothing is changed. A signal that the parent has asked to ignore stays ignored.
    """
    found = Hangups()
    if systems.HANGUP is None:
        yield found
        return
    before = signal.getsignal(systems.HANGUP)
    if isinstance(before, Hangups):
        yield before
        return
    with _handled({systems.HANGUP: found}):
        yield found


@contextlib.contextmanager
def stops_raised() -> Iterator[None]:
    """Within the block SIGTERM and SIGINT raise Stopped."""
    with _handled({signal.SIGTERM: _raise, signal.SIGINT: _raise}):
        yield


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


@contextlib.contextmanager
def _handled(handlers: dict[int, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    before = {}
    # raises ValueError outside the main thread
    with contextlib.suppress(ValueError):
        for number, handler in handlers.items():
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            with contextlib.suppress(ValueError, TypeError):
                signal.signal(number, handler_before)
