"""Files and folders: opening, reading, syncing, naming and ownership."""

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
    "is_foreign",
    "make_private",
    "mode_of",
    "open_folder",
    "open_plain",
    "possible_name",
    "read_at",
    "read_into",
    "reserve",
    "seeking",
    "sync_all",
    "sync_file",
    "sync_files",
    "sync_folder",
    "user_id",
    "write_at",
]

# not inherited by child processes, and without newline translation
PRIVATE = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
OPEN_FILES_MOVE = hasattr(os, "O_DIRECTORY")
"""Whether open files can be renamed and removed, and folders can be opened: everywhere except on Windows."""
CACHE_PLACES = (
    ("XDG_CACHE_HOME", "vivace"),
    ("HOME", ".cache/vivace"),
    *([("LOCALAPPDATA", "vivace/cache"), ("USERPROFILE", ".cache/vivace")] if not OPEN_FILES_MOVE else []),
)
"""(environment variable with a folder, subfolder of the cache in it), in order of preference."""

# on Windows these names are devices in every folder, with any suffix
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE | re.DOTALL)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
# threads share the position of a descriptor
seeking = threading.Lock()


def open_plain(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """A descriptor for `path`, without following a link and without blocking on a pipe.

    -1 for a folder on systems that can't open folders. Raises OSError.
    """
    if not hasattr(os, "O_NOFOLLOW") and path.is_symlink():
        raise OSError(errno.ELOOP, "a link", str(path))
    if not OPEN_FILES_MOVE and path.is_dir():
        return -1
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | PRIVATE, mode)


def open_folder(path: Path) -> int:
    """A descriptor of a folder; -1 on systems that can't open folders. Raises OSError."""
    if hasattr(os, "O_DIRECTORY"):
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | PRIVATE)
    return -1


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file or folder is still at `path`."""
    try:
        if not OPEN_FILES_MOVE:
            # while it is open it can't be moved
            return os.path.lexists(path)
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Up to `count` bytes from `offset` on; thread-safe. Raises OSError."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    with seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)


def read_into(descriptor: int, target: memoryview, offset: int) -> int:
    """Read into `target` from `offset` on, and return the number of bytes read; thread-safe. Raises OSError."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [target], offset)
    part = read_at(descriptor, min(len(target), 2**26), offset)
    target[: len(part)] = part
    return len(part)


def write_at(descriptor: int, content: bytes, offset: int) -> None:
    """Write a few bytes at `offset`; thread-safe. Raises OSError."""
    if hasattr(os, "pwrite"):
        os.pwrite(descriptor, content, offset)
        return
    with seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        os.write(descriptor, content)


def reserve(file: IO[bytes], size: int) -> None:
    """Allocate disk space for a sparse file of `size` bytes, keeping its contents.

    Raises OSError if there is not enough.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        return
    # writing the contents again allocates the holes
    for start in range(0, size, 2**20):
        file.seek(start)
        part = file.read(2**20)
        file.seek(start)
        file.write(part)
    file.flush()


def data_sizes(descriptor: int) -> Iterator[int]:
    """The size of each data segment (not a hole) of an open file; moves its position.

    Raises OSError if the system or file system can't report holes.
    """
    data, hole = getattr(os, "SEEK_DATA", None), getattr(os, "SEEK_HOLE", None)
    if data is None or hole is None:
        raise OSError(errno.EINVAL, "this system can't report holes")
    position, size = 0, os.fstat(descriptor).st_size
    while position < size:
        try:
            start = os.lseek(descriptor, position, data)
            position = os.lseek(descriptor, start, hole)
        except OSError as error:
            # ENXIO: no data follow; any other error means that the file system can't report holes
            if error.errno == errno.ENXIO:
                return
            raise
        yield position - start


def exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically; False if the system can't."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done: int = renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return done == 0


def sync_file(path: Path) -> None:
    """Wait until a file is on disk. Raises OSError."""
    # on Windows a file opened for reading can't be synced
    with path.open("rb" if OPEN_FILES_MOVE else "r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk; does nothing if folders can't be opened. Raises OSError."""
    descriptor = open_folder(path)
    if descriptor >= 0:
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Wait until all files below `folder` are on disk. Raises OSError."""
    for file in folder.rglob("*"):
        if file.is_file():
            sync_file(file)
    sync_folder(folder)


def sync_all() -> bool:
    """Sync everything to disk; False if the system can't."""
    if hasattr(os, "sync"):
        os.sync()
        return True
    return False


def user_id(*, real: bool = False) -> int | None:
    """The effective user id of this process (real: the real one); None if the system has none."""
    if real:
        return os.getuid() if hasattr(os, "getuid") else None
    return os.geteuid() if hasattr(os, "geteuid") else None


def is_foreign(facts: os.stat_result) -> bool:
    """Whether a file belongs to another user, except root; False if the system does not tell."""
    return user_id() is not None and facts.st_uid not in (0, user_id())


def mode_of(facts: os.stat_result) -> int:
    """A file's type and permission bits; only those of the owner where others' are not meaningful (Windows)."""
    return stat.S_IFMT(facts.st_mode) | facts.st_mode & (0o7777 if user_id() is not None else 0o700)


def make_private(descriptor: int) -> None:
    """Allow only the owner to open an open file; does nothing on systems without permissions."""
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o600)


def possible_name(text: str) -> str:
    """A valid file name on this system: on Windows "a:b", "aux.npy" and "a." are changed; elsewhere `text` itself."""
    if OPEN_FILES_MOVE:
        return text
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "-", text).rstrip(". ") or "-"
    return f"-{name}" if DEVICES.fullmatch(name) else name
