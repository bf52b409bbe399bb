"""Signals while a server starts: SIGTERM and Ctrl-C end it as they do later, and SIGHUP is remembered."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from vivace import systems
from vivace.signals import handled, handler_of

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
    before = handler_of(systems.HANGUP)
    if isinstance(before, Hangups):
        yield before
        return
    with handled({systems.HANGUP: found}):
        yield found


@contextlib.contextmanager
def stops_raised() -> Iterator[None]:
    """Within the block SIGTERM and SIGINT raise Stopped."""
    with handled({signal.SIGTERM: _raise, signal.SIGINT: _raise}):
        yield


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)
