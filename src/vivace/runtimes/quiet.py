"""Libraries that convert a model, without what they tell their own developers."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator

__all__ = ["quiet", "silent"]


# warnings' filters and logging's threshold belong to the whole process. Where several threads convert at once, the
# first to begin changes them and the last to end puts them back: each on its own would put back another's silence.
_lock = threading.Lock()
_inside = 0
_undo = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Warnings and logs below an error are dropped meanwhile, in all threads."""
    global _inside
    with _lock:
        if not _inside:
            _undo.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.WARNING)
            _undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _undo.close()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """As `quiet`, and nothing is printed: torch.export shows what it refuses page by page, beside raising it."""
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
