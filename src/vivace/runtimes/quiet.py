"""Libraries that convert a model, without what they tell their own developers."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet", "silent"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Warnings and logs below an error are dropped meanwhile."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """As `quiet`, and nothing is printed: torch.export shows what it refuses page by page, beside raising it."""
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
