"""The folder of caches: where it lies, what is in it, and how to be rid of it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["INDEX", "CacheEntry", "default_cache_dir", "list_caches", "remove_cache"]

INDEX = "cache.json"


def default_cache_dir() -> Path:
    """$VIVACE_CACHE, else $XDG_CACHE_HOME/vivace, else ~/.cache/vivace; a temporary one where none can be written."""
    candidates = [os.environ.get("VIVACE_CACHE")]
    if os.environ.get("XDG_CACHE_HOME"):
        candidates.append(os.path.join(os.environ["XDG_CACHE_HOME"], "vivace"))  # noqa: PTH118
    if os.environ.get("HOME"):
        candidates.append(os.path.join(os.environ["HOME"], ".cache", "vivace"))  # noqa: PTH118
    for candidate in candidates:
        if candidate:
            try:
                path = Path(candidate)
                path.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=path):
                    return path
            except OSError:
                continue
    return Path(tempfile.gettempdir()) / f"vivace-{os.getuid()}"


@dataclass(frozen=True)
class CacheEntry:
    """One cache on disk."""

    name: str
    num_images: int
    num_bytes: int


def list_caches(cache_dir: Path) -> list[CacheEntry]:
    """The caches of decoded images in a cache folder, by name."""
    entries = []
    for index in sorted((cache_dir / "images").glob(f"*/{INDEX}")):
        try:
            names = json.loads(index.read_bytes())["names"]
        except (OSError, ValueError, KeyError):
            names = {}
        num_bytes = sum(path.stat().st_size for path in index.parent.iterdir())
        entries.append(CacheEntry(index.parent.name, sum(map(len, names.values())), num_bytes))
    return entries


def remove_cache(cache_dir: Path, name: str) -> None:
    """Remove one cache by its name."""
    shutil.rmtree(cache_dir / "images" / name)
