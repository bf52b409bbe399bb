"""The stack that signals are handled on, kept while a library changes it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

__all__ = ["own_signal_stack", "signal_stack"]


@contextlib.contextmanager
def own_signal_stack() -> Iterator[None]:
    """Afterwards signals are handled on the stack that they were handled on before.

    OpenVINO's plugin for the CPU gives the calling thread another stack for signals, and gives back the one that it
    found when it ends. Two of them that end in the order in which they began leave the thread with a stack that is no
    longer there, and the next signal, a Ctrl-C or SIGTERM, is a segmentation fault.
    """
    before, failed = signal_stack(None)
    try:
        yield
    finally:
        if not failed:
            # with AMX a stack that is too small is refused: then the plugin's stays
            signal_stack(before)


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack(new: _Stack | None) -> tuple[_Stack, bool]:
    """The stack of this thread for signals before it was changed to `new`, and whether that failed."""
    found = _Stack()
    if sys.platform != "linux":
        return found, True
    status = ctypes.CDLL(None).sigaltstack(None if new is None else ctypes.byref(new), ctypes.byref(found))
    return found, status != 0
