"""Importing a library without what it would import beside itself."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["absent"]


@contextlib.contextmanager
def absent(name: str) -> Iterator[None]:
    """Within, importing the module of this name raises ImportError, in every thread."""
    missing: Any = None
    # it may be absent already: one of these within another
    was_there, before = name in sys.modules, sys.modules.get(name)
    sys.modules[name] = missing
    try:
        yield
    finally:
        if was_there:
            vars(sys)["modules"][name] = before
        else:
            del sys.modules[name]
