"""Opacus, imported when private training begins."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from vivace.errors import MissingExtra

__all__ = ["opacus_module"]


def opacus_module(name: str) -> Any:
    """The module opacus.NAME. Raises MissingExtra."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return import_module(f"opacus.{name}")
        except ImportError:
            raise MissingExtra("Opacus", "private", "training with differential privacy") from None
