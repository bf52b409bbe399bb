"""NNCF, imported so that it reports nothing of this user, and says only what is wrong."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from vivace.errors import MissingExtra
from vivace.libraries.openvino import without_reports

__all__ = ["load_nncf", "without_bars"]


def load_nncf() -> Any:
    """The module nncf. Raises MissingExtra."""
    try:
        with without_reports():
            import nncf
    except ImportError:
        raise MissingExtra("nncf", "accelerate", "int8 for OpenVINO") from None
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Meanwhile NNCF, which is installed, draws no progress bars: not on stdout, and not in a cell of a notebook."""
    import rich

    # that of all users of rich in this process, so it is put back
    console = rich.get_console()
    before, console.is_jupyter = console.is_jupyter, False
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        console.is_jupyter = before
