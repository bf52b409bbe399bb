"""What was unpacked into the cache, with a list of it: whole when it is opened, or unpacked anew.

The list also marks a folder as vivace's own: what has none is neither used, nor replaced, nor removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from vivace.cachedir import filled_once, warn_if_shared
from vivace.data.layouts.splitnames import is_system
from vivace.errors import ArchiveError
from vivace.files import canonical_json, read_printable
from vivace.notices import warn

__all__ = ["LISTING", "identity", "unpacked_once"]

LISTING = ".vivace-unpacked.json"
MAX_LISTING_BYTES = 2**30
# of a file's head and tail; a zip's table of names, sizes and checksums is its tail
END_BYTES = 1 << 16
# places that are tried, where a folder that is not vivace's lies in the first one
NUM_PLACES = 4
KEY_DIGITS = 12


def identity(path: Path) -> str:
    """What tells a file from any other that was ever there, without reading all of it.

    Size and time of change are not enough: `cp -p` keeps both. The time at which the system last saw the file change
    can't be set.
    """
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        ends = file.read(END_BYTES)
        file.seek(max(0, facts.st_size - END_BYTES))
        ends += file.read(END_BYTES)
    numbers = f"{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}\0{facts.st_ino}"
    return f"{path}\0{numbers}\0{hashlib.sha256(ends).hexdigest()}"


def unpacked_once(parent: Path, stem: str, key: str, fill: Callable[[Path], None]) -> Path:
    """The folder `stem`-KEY below `parent` with all that fill(folder) writes into an empty one.

    key: a hexadecimal hash of what is unpacked. What is incomplete is filled anew, which is said; a folder with files
    that were not unpacked there is left alone, and another name taken. Raises OSError, ArchiveError.
    """
    for place in range(NUM_PLACES):
        folder = parent / f"{stem}-{key[place * KEY_DIGITS : (place + 1) * KEY_DIGITS]}"
        problem = _problem(folder)
        if problem is None:
            warn_if_shared(folder)
            return folder
        if problem:
            warn(problem)
        if not problem or _is_replaceable(folder):
            with filled_once(folder, is_filled=lambda found: not _is_replaceable(found)) as temporary:
                fill(temporary)
                (temporary / LISTING).write_bytes(canonical_json(dict(_files(temporary))))
            return folder
    raise ArchiveError(f"the cache holds other files where the archive is to be unpacked: {folder}. Move them away.")


def _problem(folder: Path) -> str | None:
    """Why the folder can't be used as it is; "" where nothing is there yet, None where it is whole."""
    if not os.path.lexists(folder) or _is_empty(folder):
        return ""
    listed = _listed(folder)
    if listed is None:
        return f"the cache's {folder} has no list of what was unpacked there: it is left alone, another folder is used"
    found = dict(_files(folder))
    if extra := _extra(found, listed):
        return f"the cache's {folder} holds a file that was not unpacked there: {extra}. Another folder is used"
    lost = [name for name, size in listed.items() if found.get(name) != size]
    if lost:
        return f"{len(lost):,} of {len(listed):,} unpacked files are missing or changed in {folder}: unpacked anew"
    return None


def _is_replaceable(folder: Path) -> bool:
    """Whether nothing would be lost but what was unpacked, and that is incomplete."""
    if _is_empty(folder):
        return True
    listed = _listed(folder)
    if listed is None:
        return False
    found = dict(_files(folder))
    return not _extra(found, listed) and any(found.get(name) != size for name, size in listed.items())


def _is_empty(folder: Path) -> bool:
    return not folder.is_symlink() and folder.is_dir() and not any(folder.iterdir())


def _extra(found: dict[str, int], listed: dict[str, int]) -> str | None:
    """A file that was not unpacked; what a system puts into every folder does not count."""
    extra = (name for name in sorted(found.keys() - listed.keys()))
    return next((name for name in extra if not any(map(is_system, PurePosixPath(name).parts))), None)


def _listed(folder: Path) -> dict[str, int] | None:
    """Name → size of what was unpacked; None if there is no list that can be read."""
    if folder.is_symlink():
        return None
    try:
        listed = json.loads(read_printable(folder / LISTING, MAX_LISTING_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return listed if isinstance(listed, dict) else None


def _files(folder: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(name, size) of every file below a folder but the list; a link has size -1."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), f"{name}/")
            elif name != LISTING:
                facts = entry.stat(follow_symlinks=False)
                yield name, facts.st_size if stat.S_ISREG(facts.st_mode) else -1
