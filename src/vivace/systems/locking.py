"""Locks on open files: flock, on Windows a byte of the file, and where there is neither a file that says who has it."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import secrets
import tempfile
import threading
import time
from pathlib import Path

from vivace.systems.files import OPEN_FILES_MOVE, PRIVATE, seeking
from vivace.systems.modules import optional_module

__all__ = ["Turn", "close", "holder", "let_go", "lock", "open_to_lock"]

fcntl, msvcrt = optional_module("fcntl"), optional_module("msvcrt")

# the byte of a file that is locked on Windows, where nobody else may read what is locked: behind all that a lock says
LOCKED_BYTE = 2**30
POLL_SECONDS = 0.05
# descriptor → the file that says that it is locked, where the system has no locks
_lock_files: dict[int, Path] = {}


def open_to_lock(path: Path) -> int:
    """A descriptor by which processes lock a file or a folder that is there. Raises OSError."""
    if OPEN_FILES_MOVE or not path.is_dir():
        return os.open(path, os.O_RDONLY | PRIVATE)
    name = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:20]
    return os.open(_locks_folder() / name, os.O_RDWR | os.O_CREAT | PRIVATE, 0o600)


def close(descriptor: int) -> None:
    """Close what one of the functions above opened, and with it its lock."""
    if descriptor < 0:
        return
    if (file := _lock_files.pop(descriptor, None)) is not None:
        file.unlink(missing_ok=True)
    elif fcntl is None and msvcrt is not None:
        # closing unlocks as well, but at a time of the system's choice
        with contextlib.suppress(OSError):
            _locking(descriptor, msvcrt.LK_UNLCK)
    os.close(descriptor)


def let_go(descriptor: int) -> int:
    """Where what is open can't be renamed or removed, close it; what is still to be closed, or -1."""
    if OPEN_FILES_MOVE:
        return descriptor
    close(descriptor)
    return -1


def lock(descriptor: int, *, wait: bool = False) -> None:
    """Lock an open file or folder until it is closed, or the process ends.

    Two descriptors of it exclude each other in one process too. Raises BlockingIOError if another one holds it (wait:
    waits for it), any other OSError where there are no such locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    while True:
        try:
            (_lock_by_file if msvcrt is None else _lock_byte)(descriptor)
            return
        except BlockingIOError:
            if not wait:
                raise
        time.sleep(POLL_SECONDS)


def holder(descriptor: int) -> str:
    """The id of the process that the system says holds the lock on an open file; "" where it does not tell."""
    major, minor = getattr(os, "major", None), getattr(os, "minor", None)
    if major is None or minor is None:
        return ""
    facts = os.fstat(descriptor)
    place = f"{major(facts.st_dev):02x}:{minor(facts.st_dev):02x}:{facts.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text("ascii", "replace").splitlines():
            parts = line.split()
            # of a process outside of this container the id is 0
            if len(parts) > 5 and parts[1] == "FLOCK" and parts[5] == place and parts[4].isdigit() and parts[4] != "0":
                return parts[4]
    return ""


class Turn:
    """Entered by one thread of one process at a time: they take turns by the lock of a file or folder that all know."""

    def __init__(self, path: str) -> None:
        self._path, self._held = Path(path), threading.local()

    def __enter__(self) -> None:
        descriptor = open_to_lock(self._path)
        try:
            lock(descriptor, wait=True)
        except BaseException:
            close(descriptor)
            raise
        self._held.descriptor = descriptor

    def __exit__(self, *_: object) -> None:
        close(self._held.descriptor)


def _lock_byte(descriptor: int) -> None:
    try:
        _locking(descriptor, msvcrt.LK_NBLCK)
    except OSError as error:
        # what it answers where another holds the byte; a descriptor of nothing is EBADF
        if error.errno in (errno.EACCES, errno.EDEADLK):
            raise BlockingIOError(errno.EAGAIN, "locked by another process") from None
        raise


def _locking(descriptor: int, mode: int) -> None:
    with seeking:
        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, mode, 1)
        finally:
            os.lseek(descriptor, before, os.SEEK_SET)


def _lock_by_file(descriptor: int) -> None:
    """A file that only one process can make says which one holds the lock; that of a dead process is taken away."""
    facts = os.fstat(descriptor)
    path = _locks_folder() / f"{facts.st_dev}-{facts.st_ino}"
    for _ in range(2):
        try:
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PRIVATE, 0o600)
        except FileExistsError:
            _take_away_if_dead(path)
        else:
            with os.fdopen(made, "wb") as file:
                file.write(b"%d" % os.getpid())
            _lock_files[descriptor] = path
            return
    raise BlockingIOError(errno.EAGAIN, "locked by another process")


def _take_away_if_dead(path: Path) -> None:
    with contextlib.suppress(OSError):
        said = path.read_bytes()
        if said.isdigit() and not _is_alive(int(said)):
            aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            path.rename(aside)
            # another process may have done so just before, and locked it
            if aside.read_bytes() == said:
                aside.unlink()
            else:
                aside.rename(path)


def _is_alive(process: int) -> bool:
    if not hasattr(os, "killpg"):
        # there, no signal at all would be Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@functools.cache
def _locks_folder() -> Path:
    folder = Path(tempfile.gettempdir(), "vivace-locks")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
