"""Warnings that are dropped for the time of a block, in a process of several threads."""

from __future__ import annotations

import contextlib
import threading
import warnings
from typing import Any

__all__ = ["Silenced"]

# `warnings.filters` belongs to the whole process
_lock = threading.Lock()


class Silenced:
    """A block in which warnings of some modules are dropped, in all threads.

    Threads may be in it at once, also in blocks of others. `warnings.catch_warnings` puts back the whole list of
    filters that it found: of two that overlap, the last one to end brings back the silence of the other, for good.
    Here the first one in adds one filter, and the last one out removes that one and no other.

    modules: a regular expression, of which the beginning of a module's name is matched; no other program's, for filters
    are told apart by it.
    """

    def __init__(self, modules: str) -> None:
        self._modules = modules
        self._depth = 0
        self._filter: Any = None

    def __enter__(self) -> None:
        with _lock:
            self._depth += 1
            if self._depth == 1:
                warnings.filterwarnings("ignore", module=self._modules)
                self._filter = warnings.filters[0]

    def __exit__(self, *_: object) -> None:
        with _lock:
            self._depth -= 1
            if self._depth == 0:
                # another program's block, which began within this one, may hold another list. Python need not be told:
                # of a warning that a filter dropped it keeps nothing
                with contextlib.suppress(ValueError):
                    warnings.filters.remove(self._filter)  # type: ignore[attr-defined]
