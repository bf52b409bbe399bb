"""Handlers of signals for the time of a block."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["STOPS", "Handler", "StopSignals", "handled", "handler_of"]

STOPS = (signal.SIGINT, signal.SIGTERM)

Handler = Callable[[int, FrameType | None], None]


class _Own:
    """A handler of this process. A worker that is forked within the block ends by the signal, as any process does: what
    the handler would put in order, or raise, is this process's."""

    def __init__(self, handler: Handler) -> None:
        self.handler, self._process = handler, os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def handler_of(number: int) -> Any:
    """The handler of a signal: one of `handled`, or what `signal.getsignal` gives."""
    found = signal.getsignal(number)
    return found.handler if isinstance(found, _Own) else found


@contextlib.contextmanager
def handled(handlers: Mapping[int, Handler], *, even_ignored: bool = False) -> Iterator[None]:
    """Within the block these handlers get their signals; afterwards those get them that did before.

    handlers: by number. even_ignored: those too that the parent has asked to ignore, as nohup does. In other threads
    than the main one nothing is changed, for Python lets no other set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in handlers}
    if not even_ignored:
        before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, _Own(handlers[number]))
        yield
    finally:
        for number, handler in before.items():
            # None: set by no program in Python, which can't set it again
            if handler is not None:
                signal.signal(number, handler)


class StopSignals:
    """Within its `with` block, `received` is the first SIGINT or SIGTERM that arrived, or None.

    Work in steps asks for it, and ends in its own time. The second signal stops the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handling = contextlib.ExitStack()

    def __enter__(self) -> StopSignals:
        # work that goes on without a terminal is to be stopped too
        self._handling.enter_context(handled(dict.fromkeys(STOPS, self._handle), even_ignored=True))
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            # the second signal: exit without clean-up, which might hang
            os._exit(128 + number)
        self.received = number
