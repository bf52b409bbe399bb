"""The folder of caches: where it lies, what is in it, who may write there, and how to be rid of it."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vivace import systems
from vivace.files import atomic_folder, remove_leftovers
from vivace.locks import lock_in_turn
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
# of a folder: to write in it, or to enter it and write in those below
OTHERS_MAY_CHANGE = OTHERS_MAY_WRITE | stat.S_IXGRP | stat.S_IXOTH
# in a data set that vivace has downloaded
DOWNLOADED = ".vivace-downloaded"


def default_cache_dir() -> Path:
    """$VIVACE_CACHE, else $XDG_CACHE_HOME/vivace, else ~/.cache/vivace; a temporary one where none can be written.

    On Windows %LOCALAPPDATA% takes the place of ~/.cache.
    """
    if chosen := os.environ.get("VIVACE_CACHE"):
        # taken even if it is read-only: caches may lie there ready, and what can't be written says so itself
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
    # somebody else has made it, in a folder that all may write to: what lies there is not to be believed
    return Path(tempfile.mkdtemp(prefix="vivace-"))


def warn_if_shared(folder: Path) -> None:
    """Warn, once, where others may write to a folder of the cache that is about to be believed.

    Its checksums find damage, and no forgery: they lie beside what they are of. The rule is that of
    `kernels.trust.doubt`, but for what lies in a folder that nobody else may enter. Never raises OSError.
    """
    with contextlib.suppress(OSError):
        real = Path(os.path.realpath(folder))
        top = next(
            (place for place in (real, *real.parents) if not systems.rights(place.stat()) & OTHERS_MAY_CHANGE), real
        )
        reason = doubt(top)
        if reason is None and top == real and systems.rights(top.stat()) & OTHERS_MAY_CHANGE:
            reason = next((f"others may write to {path}" for path in real.iterdir() if _is_shared(path)), None)
        if reason is not None:
            say_once(
                f"the images and labels in {folder} are believed, and another user could have changed them: {reason}. "
                "Take the others' right to write away (chmod -R go-w), or set VIVACE_CACHE to a folder of your own."
            )


def _is_shared(path: Path) -> bool:
    facts = path.lstat()
    return systems.is_strangers(facts) or bool(systems.rights(facts) & OTHERS_MAY_WRITE)


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """Held by one process at a time, while it builds the cache `folder`; the others wait, and then need not build.

    Raises OSError if nothing can be written.
    """
    # the cache for this user alone, unless it is there already; what is in it as this user makes files
    make_private(folder.parent.parent)
    folder.parent.mkdir(exist_ok=True)
    # a file system without locks: both build, and the later one takes the place of the earlier
    with lock_in_turn(folder.with_name(f".{folder.name}.lock"), str(folder)):
        yield


class _TooLate(Exception):
    """Another process has filled the folder meanwhile."""


def _holds_anything(folder: Path) -> bool:
    return any(folder.iterdir())


@contextlib.contextmanager
def filled_once(folder: Path, *, is_filled: Callable[[Path], bool] = _holds_anything) -> Iterator[Path]:
    """A folder that becomes `folder` when the block ends well, and vanishes when it does not.

    Where another process was faster its folder stays: it holds the same, and may be in use. is_filled: whether a folder
    that lies there is such a one. Raises OSError.
    """

    def refuse(found: Path) -> None:
        if is_filled(found):
            raise _TooLate

    with contextlib.suppress(_TooLate), atomic_folder(folder, sync=False, check=refuse) as temporary:
        yield temporary
        # once for all: an fsync for each of 60,000 images takes minutes
        if not systems.sync_all():
            systems.sync_files(temporary)


def clear_leftovers(cache_dir: Path) -> None:
    """Remove what killed processes left half built in a cache: images, archives, downloads, kernels, compiled networks.

    What a living process is building stays. Called when data are opened; never raises OSError.
    """
    with contextlib.suppress(OSError):
        for folder in cache_dir.iterdir():
            if folder.is_dir():
                remove_leftovers(folder)
