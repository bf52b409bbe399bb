"""Locks between processes: on a run folder, and on what is being built in the cache. Never through a link or a pipe.

A lock is a small file beside what it guards. What it says is for people: the id of the process that holds it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from vivace import systems
from vivace.errors import RunFolderError
from vivace.notices import warn

__all__ = ["FolderLock", "lock_in_turn", "wait_for"]

# what vivace writes into a lock: a process id, and in a run folder whether its run has begun
WRITTEN = re.compile(rb"(?:\d{1,20}(?P<new> new)?)?")
SILENT_SECONDS = 2.0
POLL_SECONDS = 0.05


class _NotALock(OSError):
    """What lies in the place of a lock is not one that vivace wrote; `strerror` says what it is."""

    def __init__(self, what: str) -> None:
        super().__init__(0, what)


class FolderLock:
    """An exclusive lock on a folder, held until `release` or the end of the process, SIGKILL included.

    Raises RunFolderError if the folder can't be written, another process holds it, or .lock is not a lock of vivace's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = path = folder / ".lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.made = not os.path.lexists(path)
            """Whether the file was not there before."""
            self._descriptor = _open_lock(path)
        except _NotALock as error:
            raise RunFolderError(
                f"the run folder's lock is not vivace's: {path} {error.strerror}. Choose another --run, or move it."
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"the run folder can't be written: {folder} ({error.strerror}). Choose another with --run."
            ) from None
        content = _content(self._descriptor)
        try:
            systems.lock(self._descriptor)
        except OSError:
            systems.close(self._descriptor)
            raise _in_use(folder, content) from None
        if not systems.is_at(self._descriptor, path):
            # whoever held it before has just removed it: another process may hold a new one
            systems.close(self._descriptor)
            raise _in_use(folder, content)
        match = WRITTEN.fullmatch(content)
        self.of_unbegun_run = match is not None and match["new"] is not None
        """Whether the process that held it before was killed before its run began."""

    def write(self, *, begun: bool) -> None:
        """Say in it which process holds the folder, and whether its run has begun. Raises OSError."""
        _write(self._descriptor, f"{os.getpid()}{'' if begun else ' new'}")

    def release(self) -> None:
        """Release the lock; nothing happens the second time."""
        if self._descriptor >= 0:
            systems.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _in_use(folder: Path, content: bytes) -> RunFolderError:
    holder = content.decode().removesuffix(" new") or "unknown"
    if holder == str(os.getpid()):
        return RunFolderError(
            f"another run of this process (a thread, or another cell of a notebook) is using the folder: "
            f"{folder}. Wait until it has ended or restart the kernel, or choose another with run=..."
        )
    return RunFolderError(
        f"another run is using the folder: {folder} (process {holder}). "
        "Wait for it, or choose another with --run (in Python run=...)."
    )


@contextlib.contextmanager
def lock_in_turn(path: Path, what: str) -> Iterator[None]:
    """Held by one process at a time; the others wait, and say so. what: what is built meanwhile, for the message.

    Raises OSError if the file can't be made, or is a link, a pipe, or anything that vivace did not write.
    """
    try:
        descriptor = _open_lock(path)
    except _NotALock as error:
        raise _NotALock(f"its lock {path.name} {error.strerror}") from None
    try:
        # a file system without locks: both go on
        with contextlib.suppress(OSError):
            wait_for(descriptor, what)
            _write(descriptor, str(os.getpid()))
        yield
    finally:
        systems.close(descriptor)


def wait_for(descriptor: int, what: str) -> None:
    """Lock an open file or folder; who has to wait for longer than a moment says so, once. Raises OSError."""
    began, said = time.monotonic(), False
    while True:
        try:
            systems.lock(descriptor)
            return
        except BlockingIOError:
            pass
        if not said and time.monotonic() - began >= SILENT_SECONDS:
            warn(f"waiting for {_holder(descriptor)}, which is building {what}")
            said = True
        time.sleep(POLL_SECONDS)


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        if content := _content(descriptor):
            return f"process {content.decode(errors='replace')}"
    return "another process"


def _open_lock(path: Path) -> int:
    """A descriptor of a lock file, made if there is none; nothing is written to it yet.

    Raises _NotALock for whatever vivace did not write there, OSError.
    """
    if path.is_symlink():
        raise _NotALock("is a link")
    if path.is_dir():
        raise _NotALock("is a folder")
    descriptor = systems.open_plain(path, os.O_RDWR | os.O_CREAT)
    if problem := _problem(descriptor):
        systems.close(descriptor)
        raise _NotALock(problem)
    return descriptor


def _problem(descriptor: int) -> str | None:
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        return "is no regular file"
    if facts.st_nlink > 1:
        # written to, the other names' content would change too
        return "has other names (hard links)"
    # root may go on with what the user of a container's host began
    if systems.user_id() not in (None, 0, facts.st_uid):
        return "belongs to another user"
    return None if WRITTEN.fullmatch(_content(descriptor)) else "holds something else than a process id"


def _content(descriptor: int) -> bytes:
    return systems.read_at(descriptor, 64, 0) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    systems.write_at(descriptor, text.encode(), 0)
