"""Gives a finished file its name, and replaces none that is not to be replaced; the same call again changes nothing."""

from __future__ import annotations

import contextlib
import filecmp
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vivace import systems
from vivace.batch.unfinished import MADE
from vivace.errors import OutputPathError
from vivace.outputs import writing

__all__ = ["publish"]


def publish(
    made: Path, out: Path, *, overwrite: bool, make: Callable[[Any], None] | None = None, option: str = "`out`"
) -> None:
    """Give the file `made` the name `out`; or what make(file) writes, which reads `made`.

    A file that is there with the very same bytes stays: the process was killed before it could say that it had
    finished. Raises OutputPathError if another file is there, unless `overwrite`.
    """
    with writing(out):
        if make is None:
            _name(made, out, overwrite, option)
        else:
            temporary = made.with_name(MADE)
            # of a process that was killed here
            temporary.unlink(missing_ok=True)
            try:
                with temporary.open("xb") as file:
                    make(file)
                    file.flush()
                    os.fsync(file.fileno())
                _name(temporary, out, overwrite, option)
            finally:
                temporary.unlink(missing_ok=True)
        systems.sync_folder(out.absolute().parent)


def _name(made: Path, out: Path, overwrite: bool, option: str) -> None:
    if not os.path.lexists(out):
        with contextlib.suppress(FileExistsError):
            _link(made, out)
            return
    if not out.is_symlink() and out.is_file() and filecmp.cmp(made, out, shallow=False):
        return
    if not overwrite or out.is_symlink() or not out.is_file():
        raise OutputPathError(
            f"{option} exists now, and was not written by this run: {out}. Move it away; what is done is kept for "
            "`resume`."
        )
    # a second name that takes the place of the file at once; the first one stays until all is done
    beside = out.with_name(f".{out.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(made, beside)
        beside.replace(out)
    except OSError:
        # this file system gives a file one name
        made.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def _link(made: Path, out: Path) -> None:
    """A second name; where a file can have only one, the new name. Raises FileExistsError."""
    try:
        os.link(made, out)
        return
    except FileExistsError:
        raise
    except OSError:
        pass
    if os.path.lexists(out):
        raise FileExistsError(str(out))
    made.replace(out)
