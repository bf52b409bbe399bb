"""Libraries that convert a model, without what they tell their own developers."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections.abc import Iterator

from vivace.silenced import Silenced

__all__ = ["quiet", "silent"]


# logging's threshold belongs to the whole process. Where several threads convert at once, the first to begin changes it
# and the last to end puts it back: each on its own would put back another's silence.
_lock = threading.Lock()
_inside = 0
_threshold = logging.NOTSET
_warnings = Silenced("(?:)")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Warnings and logs below an error are dropped meanwhile, in all threads."""
    global _inside, _threshold
    with _lock:
        if not _inside:
            _threshold = logging.root.manager.disable
            logging.disable(logging.WARNING)
        _inside += 1
    try:
        with _warnings:
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                logging.disable(_threshold)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """As `quiet`, and nothing is printed: torch.export shows what it refuses page by page, beside raising it."""
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
