"""SIGTERM ends a verb as Ctrl-C does: what was begun is put in order, and a line says so."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from vivace.signals import handled

__all__ = ["TERMINATED", "Terminated", "termination_raised"]

# the exit status of a process that SIGTERM ended
TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM. No Exception, which could be taken for the failure of a candidate or of an image."""


@contextlib.contextmanager
def termination_raised() -> Iterator[None]:
    """Within the block SIGTERM raises Terminated; a second one, while things are put in order, ends the process.

    In other threads than the main one nothing is changed. A signal that the parent has asked to ignore stays ignored.
    """
    with handled({signal.SIGTERM: _stop}):
        yield


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated
