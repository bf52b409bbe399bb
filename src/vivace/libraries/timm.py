"""timm, imported without the experiment tracker that its own training script reports to."""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module
from typing import Any

from vivace.libraries.absent import absent

__all__ = ["load_timm"]

TRACKER = "wandb"


def load_timm() -> Any:
    """The module timm. Where the tracker is installed, importing it too would take as long as all the rest."""
    if "timm" in sys.modules:
        return import_module("timm")
    with contextlib.nullcontext() if TRACKER in sys.modules else absent(TRACKER):
        return import_module("timm")
