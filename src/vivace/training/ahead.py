"""What takes seconds to import, imported by threads while the data are read."""

from __future__ import annotations

import contextlib
import threading

from vivace.libraries.timm import load_timm

__all__ = ["import_timm", "import_torch"]


def import_torch() -> None:
    """torch, and the compiler, which its first optimizer imports and which takes as long as torch itself.

    Raises nothing: what prevents it shows where it is imported next. A command that is refused meanwhile ends while
    this goes on, and what that breaks is nobody's business.
    """
    with contextlib.suppress(Exception):
        from vivace.torch_private import load_compiler

        load_compiler()


def import_timm(first: threading.Thread) -> None:
    """timm, once `first` has ended: two threads that import torch at once could see partial modules. Raises nothing."""
    first.join()
    with contextlib.suppress(Exception):
        load_timm()
