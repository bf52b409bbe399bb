"""A time limit for inference: a malicious graph may compute forever.

A runtime can be told from another thread to stop. One thread looks after all calls: to start a timer for each would
take as long as a small network does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from vivace.errors import BundleError

__all__ = ["patience", "within"]

# the largest networks of timm take 6·10¹² operations for an image, a minute on two slow processors
CALL_SECONDS, IMAGE_SECONDS = 60.0, 60.0
# how often is looked
STEP_SECONDS = 0.5

_running: dict[object, tuple[float, Callable[[], None]]] = {}
_lock = threading.Lock()
_watcher: threading.Thread | None = None


def patience(num_images: int) -> float:
    """Seconds that a call with `num_images` images may take: generous, so that slow machines stay below it."""
    return CALL_SECONDS + IMAGE_SECONDS * num_images


@contextlib.contextmanager
def within(seconds: float, stop: Callable[[], None], what: str) -> Iterator[None]:
    """Call `stop` from another thread when the block takes longer. It must make the block raise: then BundleError is.

    what: what took so long, the subject of the message.
    """
    call = object()
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True
        stop()

    _running[call] = (time.monotonic() + seconds, end)
    _watch()
    try:
        yield
    except Exception:
        if not ended:
            raise
        raise BundleError(
            f"{what} took more than {seconds:g} s and was ended. Do not use it, or give it smaller batches."
        ) from None
    finally:
        del _running[call]


def _watch() -> None:
    """See that the thread runs."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        with _lock:
            if _watcher is None or not _watcher.is_alive():
                _watcher = threading.Thread(target=_look, daemon=True, name="vivace-patience")
                _watcher.start()


def _look() -> None:
    while True:
        time.sleep(STEP_SECONDS)
        now = time.monotonic()
        for deadline, stop in list(_running.values()):
            if now > deadline:
                stop()


def _forget() -> None:
    global _watcher, _lock
    # threads are not forked, and what holds a lock is not there to let it go
    _watcher, _lock = None, threading.Lock()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
