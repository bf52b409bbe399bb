"""The cache folder: its location, exclusive building, cleaning up, and a warning if others may write to it."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vivace import systems
from vivace.files import atomic_folder, remove_leftovers
from vivace.locks import waiting_lock
from vivace.trust import OTHERS_MAY_WRITE, doubt, make_private, say_once

__all__ = [
    "DOWNLOADED",
    "INDEX",
    "building",
    "clear_leftovers",
    "default_cache_dir",
    "filled_once",
    "warn_if_shared",
]

INDEX = "cache.json"
# permission to write in a folder, or to enter it and perhaps write in its subfolders
OTHERS_MAY_CHANGE = OTHERS_MAY_WRITE | stat.S_IXGRP | stat.S_IXOTH
# marks a data set that vivace downloaded
DOWNLOADED = ".vivace-downloaded"


def default_cache_dir() -> Path:
    """$VIVACE_CACHE, else $XDG_CACHE_HOME/vivace, else ~/.cache/vivace; a temporary folder if none is writable.

    On Windows it is %LOCALAPPDATA%/vivace/cache instead of ~/.cache/vivace.
    """
    if chosen := os.environ.get("VIVACE_CACHE"):
        # used even if it is read-only: it may hold finished caches, and failing writes report themselves
        path = Path(chosen).expanduser()
        with contextlib.suppress(OSError):
            make_private(path)
        return path
    for variable, below in systems.CACHE_PLACES:
        if base := os.environ.get(variable):
            path = Path(base, below)
            with contextlib.suppress(OSError):
                make_private(path)
                with tempfile.TemporaryFile(dir=path):
                    return path
    user = systems.user_id(real=True)
    path = Path(tempfile.gettempdir(), "vivace" if user is None else f"vivace-{user}")
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, exist_ok=True)
        facts = path.lstat()
        if path.is_dir() and not path.is_symlink() and user in (None, facts.st_uid):
            return path
    # somebody else made it in a world-writable folder, so its contents can't be trusted
    return Path(tempfile.mkdtemp(prefix="vivace-"))


def warn_if_shared(folder: Path) -> None:
    """Warn, once, if others may write to a folder of the cache that is about to be used.

    Its checksums detect damage but not forgery, since they are stored beside the data. The rule is that of
    `trust.doubt`, except in a folder that nobody else may enter. Never raises OSError.
    """
    with contextlib.suppress(OSError):
        real = Path(os.path.realpath(folder))
        top = next(
            (place for place in (real, *real.parents) if not systems.mode_of(place.stat()) & OTHERS_MAY_CHANGE), real
        )
        reason = doubt(top)
        if reason is None and top == real and systems.mode_of(top.stat()) & OTHERS_MAY_CHANGE:
            reason = next((f"others may write to {path}" for path in real.iterdir() if _is_shared(path)), None)
        if reason is not None:
            say_once(
                f"another user could have changed the images and labels in {folder}, which are used: {reason}. "
                "Remove write permission for others (chmod -R go-w), or set VIVACE_CACHE to a private folder."
            )


def _is_shared(path: Path) -> bool:
    facts = path.lstat()
    return systems.is_foreign(facts) or bool(systems.mode_of(facts) & OTHERS_MAY_WRITE)


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """A lock for building the cache `folder`: other processes wait, and then find it built.

    Raises OSError if the folder can't be written.
    """
    # a new cache folder is private; its subfolders have the user's default permissions
    make_private(folder.parent.parent)
    folder.parent.mkdir(exist_ok=True)
    # on a file system without locks both processes build, and the later one replaces the cache of the earlier
    with waiting_lock(folder.with_name(f".{folder.name}.lock"), str(folder)):
        yield


class _TooLate(Exception):
    """Another process filled the folder meanwhile."""


def _holds_anything(folder: Path) -> bool:
    return any(folder.iterdir())


@contextlib.contextmanager
def filled_once(folder: Path, *, is_filled: Callable[[Path], bool] = _holds_anything) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` when the block succeeds, and removed if it raises.

    If another process was faster, its folder stays: it has the same contents, and may be in use. is_filled: whether an
    existing folder is such a one. Raises OSError.
    """

    def refuse(found: Path) -> None:
        if is_filled(found):
            raise _TooLate

    with contextlib.suppress(_TooLate), atomic_folder(folder, sync=False, check=refuse) as temporary:
        yield temporary
        # one sync for all files: fsync for each of 60,000 images would take minutes
        if not systems.sync_all():
            systems.sync_files(temporary)


def clear_leftovers(cache_dir: Path) -> None:
    """Remove the incomplete folders of killed processes from a cache.

    Folders that a living process is building stay. Called whenever data is opened; never raises OSError.
    """
    with contextlib.suppress(OSError):
        for folder in cache_dir.iterdir():
            if folder.is_dir():
                remove_leftovers(folder)
