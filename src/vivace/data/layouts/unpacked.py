"""Folders unpacked into the cache, each with a list of its files; an incomplete folder is unpacked again.

The list also marks a folder as vivace's: a folder without one is never used, replaced or removed.
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
# of a file's start and end that are hashed; the end of a zip holds its names, sizes and checksums
END_BYTES = 1 << 16
# alternative folder names that are tried if a folder that is not vivace's has the first one
NUM_PLACES = 4
KEY_DIGITS = 12


def identity(path: Path) -> str:
    """A text that changes whenever the file does, made without reading all of it.

    Size and modification time are not enough, because `cp -p` preserves both. The change time (ctime) can't be set by
    a user.
    """
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        ends = file.read(END_BYTES)
        file.seek(max(0, facts.st_size - END_BYTES))
        ends += file.read(END_BYTES)
    numbers = f"{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}\0{facts.st_ino}"
    return f"{path}\0{numbers}\0{hashlib.sha256(ends).hexdigest()}"


def unpacked_once(parent: Path, stem: str, key: str, fill: Callable[[Path], None]) -> Path:
    """The folder `stem`-KEY below `parent` with everything that fill(folder) writes into an empty folder.

    key: a hexadecimal hash of what is unpacked. An incomplete folder is filled again, with a warning; a folder with
    other files is left alone, and another name is used. Raises OSError, ArchiveError.
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
    """Why the folder can't be used as it is; "" if it does not exist or is empty, None if it is complete."""
    if not os.path.lexists(folder) or _is_empty(folder):
        return ""
    listed = _listed(folder)
    if listed is None:
        return f"{folder} in the cache has no list of unpacked files: it is left alone, and another folder is used"
    found = dict(_files(folder))
    if extra := _extra(found, listed):
        return f"{folder} in the cache holds a file that was not unpacked there: {extra}; another folder is used"
    lost = [name for name, size in listed.items() if found.get(name) != size]
    if lost:
        return f"{len(lost):,} of {len(listed):,} unpacked files are missing or changed in {folder}: unpacking again"
    return None


def _is_replaceable(folder: Path) -> bool:
    """Whether the folder holds nothing but unpacked files, and they are incomplete."""
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
    """A file that was not unpacked, if any; files that operating systems create do not count."""
    extra = (name for name in sorted(found.keys() - listed.keys()))
    return next((name for name in extra if not any(map(is_system, PurePosixPath(name).parts))), None)


def _listed(folder: Path) -> dict[str, int] | None:
    """Name → size of the unpacked files; None if there is no readable list."""
    if folder.is_symlink():
        return None
    try:
        listed = json.loads(read_printable(folder / LISTING, MAX_LISTING_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return listed if isinstance(listed, dict) else None


def _files(folder: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(name, size) of every file below a folder except the list; the size of a link is -1."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), f"{name}/")
            elif name != LISTING:
                facts = entry.stat(follow_symlinks=False)
                yield name, facts.st_size if stat.S_ISREG(facts.st_mode) else -1
