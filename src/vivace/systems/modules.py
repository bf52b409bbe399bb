"""Imports modules of the standard library that not every system has."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["optional_module"]


def optional_module(name: str) -> Any:
    """A module of the standard library; None if this system does not have it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
