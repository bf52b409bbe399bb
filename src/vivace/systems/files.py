"""Files and folders: how they are opened, read, synced and named, and whose they are."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = [
    "CACHE_PLACES",
    "OPEN_FILES_MOVE",
    "PRIVATE",
    "data_sizes",
    "exchange",
    "is_at",
    "is_strangers",
    "make_owners_alone",
    "open_folder",
    "open_plain",
    "possible_name",
    "read_at",
    "read_into",
    "reserve",
    "rights",
    "seeking",
    "sync_all",
    "sync_file",
    "sync_files",
    "sync_folder",
    "user_id",
    "write_at",
]

# not for processes that this one starts, and its bytes as they are
PRIVATE = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
OPEN_FILES_MOVE = hasattr(os, "O_DIRECTORY")
"""Whether what is open can be renamed and removed, and folders can be opened: everywhere but on Windows."""
CACHE_PLACES = (
    ("XDG_CACHE_HOME", "vivace"),
    ("HOME", ".cache/vivace"),
    *([("LOCALAPPDATA", "vivace/cache"), ("USERPROFILE", ".cache/vivace")] if not OPEN_FILES_MOVE else []),
)
"""Variables that name a folder, and where in it the cache lies."""


# names that are devices in every folder of Windows, with whatever suffix
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE | re.DOTALL)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
# all threads share the position of a descriptor
seeking = threading.Lock()


def open_plain(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """A descriptor of what is at `path`, through no link; a pipe is not waited for. -1: a folder that can't be opened.

    Raises OSError.
    """
    if not hasattr(os, "O_NOFOLLOW") and path.is_symlink():
        raise OSError(errno.ELOOP, "a link", str(path))
    if not OPEN_FILES_MOVE and path.is_dir():
        return -1
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | PRIVATE, mode)


def open_folder(path: Path) -> int:
    """A descriptor of a folder; -1 where folders can't be opened. Raises OSError."""
    if hasattr(os, "O_DIRECTORY"):
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | PRIVATE)
    return -1


def is_at(descriptor: int, path: Path) -> bool:
    """Whether what was opened still lies at `path`."""
    try:
        if not OPEN_FILES_MOVE:
            # held open it can't be anywhere else
            return os.path.lexists(path)
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Up to `count` bytes from `offset` on, whatever other threads read. Raises OSError."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    with seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)


def read_into(descriptor: int, target: memoryview, offset: int) -> int:
    """Fill bytes of `target` from `offset` on; how many were read. Raises OSError."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [target], offset)
    part = read_at(descriptor, min(len(target), 2**26), offset)
    target[: len(part)] = part
    return len(part)


def write_at(descriptor: int, content: bytes, offset: int) -> None:
    """Write a few bytes from `offset` on. Raises OSError."""
    if hasattr(os, "pwrite"):
        os.pwrite(descriptor, content, offset)
        return
    with seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        os.write(descriptor, content)


def reserve(file: IO[bytes], size: int) -> None:
    """Take room on the disk for the zeros that a file of `size` bytes consists of, which has a header of its own.

    Raises OSError if there is not enough.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        return
    # bytes that were never written take none; what is there is written again
    for start in range(0, size, 2**20):
        file.seek(start)
        part = file.read(2**20)
        file.seek(start)
        file.write(part)
    file.flush()


def data_sizes(descriptor: int) -> Iterator[int]:
    """Bytes of each part of an open file that is no hole. Its position moves. Raises OSError where that is not told."""
    data, hole = getattr(os, "SEEK_DATA", None), getattr(os, "SEEK_HOLE", None)
    if data is None or hole is None:
        raise OSError(errno.EINVAL, "holes are not told here")
    position, size = 0, os.fstat(descriptor).st_size
    while position < size:
        try:
            start = os.lseek(descriptor, position, data)
            position = os.lseek(descriptor, start, hole)
        except OSError as error:
            # behind the last data; any other says that the file system knows of no holes
            if error.errno == errno.ENXIO:
                return
            raise
        yield position - start


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, so that a killed process leaves one or the other; False where that can't be done."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done: int = renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return done == 0


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk. Raises OSError."""
    # where open files can't be moved, one that is open for reading can't be synced either
    with path.open("rb" if OPEN_FILES_MOVE else "r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where that can be asked for. Raises OSError."""
    descriptor = open_folder(path)
    if descriptor >= 0:
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Wait until all files below `folder` are on the disk. Raises OSError."""
    for file in folder.rglob("*"):
        if file.is_file():
            sync_file(file)
    sync_folder(folder)


def sync_all() -> bool:
    """Put everything on the disk; False where that can't be asked for."""
    if hasattr(os, "sync"):
        os.sync()
        return True
    return False


def user_id(*, real: bool = False) -> int | None:
    """The number of this process's user (real: of who started it); None where users have none."""
    if real:
        return os.getuid() if hasattr(os, "getuid") else None
    return os.geteuid() if hasattr(os, "geteuid") else None


def is_strangers(facts: os.stat_result) -> bool:
    """Whether a file belongs to another user than this one and root; False where its facts do not tell."""
    return user_id() is not None and facts.st_uid not in (0, user_id())


def rights(facts: os.stat_result) -> int:
    """A file's mode; where users have no numbers it is made up, and tells nothing of others."""
    return stat.S_IFMT(facts.st_mode) | facts.st_mode & (0o7777 if user_id() is not None else 0o700)


def make_owners_alone(descriptor: int) -> None:
    """Let nobody but its owner open what is open; nothing happens where there are no rights to take."""
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o600)


def possible_name(text: str) -> str:
    """A name that a file may have here: on Windows another one for "a:b", "aux.npy" and "a."; elsewhere `text`."""
    if OPEN_FILES_MOVE:
        return text
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "-", text).rstrip(". ") or "-"
    return f"-{name}" if DEVICES.fullmatch(name) else name
