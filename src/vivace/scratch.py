"""Folders for what is needed for a moment, which even a killed process leaves for no longer than to the next start."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vivace.files import held, new_folder, remove_leftovers

__all__ = ["scratch_folder"]


@contextlib.contextmanager
def scratch_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder that this user alone may enter, gone after the block; those that killed processes left go first.

    parent: where it is made; None: among the system's temporary folders ($TMPDIR). Raises OSError.
    """
    path = (parent or Path(tempfile.gettempdir())) / f"vivace-{purpose}"
    remove_leftovers(path.parent, path.name)
    with held(path.absolute(), functools.partial(new_folder, mode=0o700)) as made:
        yield made.path
        shutil.rmtree(made.path, ignore_errors=True)
