"""Locks on open files: by flock, on Windows by a byte of the file, and without either by a file with a process id."""

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

__all__ = ["FileLock", "close", "close_if_immovable", "holder", "lock", "open_to_lock"]

fcntl, msvcrt = optional_module("fcntl"), optional_module("msvcrt")

# the byte that is locked on Windows; beyond the contents, because other processes can't read locked bytes
LOCKED_BYTE = 2**30
POLL_SECONDS = 0.05
# descriptor → the file that marks it as locked, on systems without locks
_lock_files: dict[int, Path] = {}


def open_to_lock(path: Path) -> int:
    """A descriptor for locking an existing file or folder. Raises OSError."""
    if OPEN_FILES_MOVE or not path.is_dir():
        return os.open(path, os.O_RDONLY | PRIVATE)
    name = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:20]
    return os.open(_locks_folder() / name, os.O_RDWR | os.O_CREAT | PRIVATE, 0o600)


def close(descriptor: int) -> None:
    """Close a descriptor of this package, and release its lock; -1 is ignored."""
    if descriptor < 0:
        return
    if (file := _lock_files.pop(descriptor, None)) is not None:
        file.unlink(missing_ok=True)
    elif fcntl is None and msvcrt is not None:
        # closing would unlock too, but possibly with a delay
        with contextlib.suppress(OSError):
            _locking(descriptor, msvcrt.LK_UNLCK)
    os.close(descriptor)


def close_if_immovable(descriptor: int) -> int:
    """Close the descriptor if open files can't be renamed or removed; returns the open descriptor or -1."""
    if OPEN_FILES_MOVE:
        return descriptor
    close(descriptor)
    return -1


def lock(descriptor: int, *, wait: bool = False) -> None:
    """Lock an open file or folder until its descriptor is closed or the process ends.

    Two descriptors exclude each other, even in the same process. wait: wait for the lock. Raises BlockingIOError if
    another descriptor holds it, and any other OSError if the file system has no locks.
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
    """The id of the process that holds the lock on an open file; "" if the system does not tell."""
    major, minor = getattr(os, "major", None), getattr(os, "minor", None)
    if major is None or minor is None:
        return ""
    facts = os.fstat(descriptor)
    place = f"{major(facts.st_dev):02x}:{minor(facts.st_dev):02x}:{facts.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text("ascii", "replace").splitlines():
            parts = line.split()
            # the id of a process outside this container is 0
            if len(parts) > 5 and parts[1] == "FLOCK" and parts[5] == place and parts[4].isdigit() and parts[4] != "0":
                return parts[4]
    return ""


class FileLock:
    """A context that one thread of one process at a time can enter, by locking an existing file or folder."""

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
        # these mean that another process holds the byte; an invalid descriptor would be EBADF
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
    """Lock by creating a file with the id of this process; the file of a dead process is removed."""
    facts = os.fstat(descriptor)
    path = _locks_folder() / f"{facts.st_dev}-{facts.st_ino}"
    for _ in range(2):
        try:
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PRIVATE, 0o600)
        except FileExistsError:
            _remove_if_dead(path)
        else:
            with os.fdopen(made, "wb") as file:
                file.write(b"%d" % os.getpid())
            _lock_files[descriptor] = path
            return
    raise BlockingIOError(errno.EAGAIN, "locked by another process")


def _remove_if_dead(path: Path) -> None:
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if content.isdigit() and not _is_alive(int(content)):
            aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            path.rename(aside)
            # another process may have removed it just before, and locked it itself
            if aside.read_bytes() == content:
                aside.unlink()
            else:
                aside.rename(path)


def _is_alive(process: int) -> bool:
    if not hasattr(os, "killpg"):
        # on Windows signal 0 is Ctrl-C
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
