"""Removal of a cache that vivace may still be syncing to disk, and replacing its index."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from vivace.data.caching.files import SETTLING

__all__ = ["remove_cache"]


def remove_cache(folder: Path) -> None:
    """Remove a folder that holds a cache; without waiting, its new index could appear while it is being removed."""
    for thread in threading.enumerate():
        if thread.name == SETTLING:
            thread.join()
    shutil.rmtree(folder)
