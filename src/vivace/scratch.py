"""Temporary folders; those of a killed process are removed at the next start."""

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
    """An empty private folder that is removed after the block; those of killed processes are removed first.

    parent: where it is created; None: in the system's temporary folder ($TMPDIR). Raises OSError.
    """
    path = (parent or Path(tempfile.gettempdir())) / f"vivace-{purpose}"
    remove_leftovers(path.parent, path.name)
    with held(path.absolute(), functools.partial(new_folder, mode=0o700)) as made:
        yield made.path
        shutil.rmtree(made.path, ignore_errors=True)
