"""Locks between processes, on run folders and on caches being built; never through a link or a pipe.

A lock is a small file that only its owner may open, since anybody who can open a file can lock it. It holds the id of
the process that has the lock, for messages.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from vivace import systems
from vivace.errors import RunFolderError
from vivace.notices import warn

__all__ = ["FolderLock", "waiting_lock"]

# what vivace writes into a lock: a process id, and in a run folder " new" until its run has begun
WRITTEN = re.compile(rb"(?:\d{1,20}(?P<new> new)?)?")
SILENT_SECONDS = 2.0
POLL_SECONDS = 0.05
# a working process writes into its lock this often (a heartbeat); without one for MAX_SILENCE it is considered hung
BEAT_SECONDS = 20.0
MAX_SILENCE_SECONDS = 600.0
# CPU time that counts as work; the heartbeats themselves take less
WORKED_SECONDS = 0.02
BEATING = "vivace-lock"


class _NotALock(OSError):
    """The file in place of a lock was not written by vivace; `strerror` says what it is."""

    def __init__(self, what: str) -> None:
        super().__init__(0, what)


class FolderLock:
    """An exclusive lock on a folder, held until `release` or the end of the process, even by SIGKILL.

    Raises RunFolderError if the folder can't be written, another run holds the lock, or .lock was not written by
    vivace.
    """

    def __init__(self, folder: Path) -> None:
        self.path = path = folder / ".lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.made = not os.path.lexists(path)
            """Whether the lock file did not exist before."""
            self._descriptor = _open_lock(path)
        except _NotALock as error:
            raise RunFolderError(
                f"the run folder's lock was not written by vivace: {path} {error.strerror}. Choose another `run`, or "
                "move it away."
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"the run folder can't be written: {folder} ({error.strerror}). Choose another by `run`."
            ) from None
        content = _content(self._descriptor)
        try:
            systems.lock(self._descriptor)
        except OSError:
            holder = systems.holder(self._descriptor) or content.decode().removesuffix(" new")
            systems.close(self._descriptor)
            raise _in_use(folder, holder) from None
        if not systems.is_at(self._descriptor, path):
            # its previous holder has just removed it, and another process may hold a new one
            systems.close(self._descriptor)
            raise _in_use(folder, content.decode().removesuffix(" new"))
        match = WRITTEN.fullmatch(content)
        self.of_unbegun_run = match is not None and match["new"] is not None
        """Whether the previous holder was killed before its run began."""

    def write(self, *, begun: bool) -> None:
        """Write this process's id, and whether its run has begun, into the lock. Raises OSError."""
        _write(self._descriptor, f"{os.getpid()}{'' if begun else ' new'}")

    def release(self) -> None:
        """Release the lock; further calls do nothing."""
        if self._descriptor >= 0:
            systems.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _in_use(folder: Path, holder: str) -> RunFolderError:
    if holder == str(os.getpid()):
        return RunFolderError(
            f"another run of this process (a thread, or another cell of a notebook) is using the folder: "
            f"{folder}. Wait for it, restart the kernel, or choose another by run=..."
        )
    return RunFolderError(
        f"another run is using the folder: {folder} (process {holder or 'unknown'}). "
        "Wait for it or end it, or choose another by `run`."
    )


@contextlib.contextmanager
def waiting_lock(path: Path, what: str) -> Iterator[None]:
    """A lock that one process at a time can hold; others wait, with a message. what: what is built, for the message.

    Raises OSError if the file can't be created or was not written by vivace, and TimeoutError if the process that holds
    it has done nothing for MAX_SILENCE_SECONDS.
    """
    try:
        descriptor = _open_lock(path)
    except _NotALock as error:
        raise _NotALock(f"its lock {path.name} {error.strerror}: remove it, unless it is a file of yours") from None
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(descriptor, ended), daemon=True, name=BEATING)
    try:
        if _wait_for(descriptor, path, what):
            beating.start()
        yield
    finally:
        ended.set()
        if beating.ident is not None:
            beating.join()
        systems.close(descriptor)


def _wait_for(descriptor: int, path: Path, what: str) -> bool:
    """Wait for the lock, with one message if it takes longer; False on a file system without locks.

    Raises TimeoutError.
    """
    began, warned = time.monotonic(), False
    beaten, beaten_at = os.fstat(descriptor).st_mtime_ns, began
    while True:
        try:
            systems.lock(descriptor)
            _write(descriptor, str(os.getpid()))
            return True
        except BlockingIOError:
            pass
        except OSError:
            return False
        now, beat = time.monotonic(), os.fstat(descriptor).st_mtime_ns
        if beat != beaten:
            beaten, beaten_at = beat, now
        if now - beaten_at >= MAX_SILENCE_SECONDS:
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"{_holder(descriptor)} holds its lock {path.name} and has done nothing for "
                f"{_minutes(MAX_SILENCE_SECONDS)}: end it if it hangs",
            )
        if not warned and now - began >= SILENT_SECONDS:
            warn(f"waiting for {_holder(descriptor)}, which is building {what}")
            warned = True
        time.sleep(POLL_SECONDS)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"


def _beat(descriptor: int, ended: threading.Event) -> None:
    """Write a heartbeat into the lock regularly, as long as this process works."""
    worked = time.process_time()
    while not ended.wait(BEAT_SECONDS):
        now = time.process_time()
        if now - worked > WORKED_SECONDS:
            worked = now
            with contextlib.suppress(OSError):
                systems.write_at(descriptor, str(os.getpid()).encode(), 0)


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        if holder := systems.holder(descriptor) or _content(descriptor).decode(errors="replace"):
            return f"process {holder}"
    return "another process"


def _open_lock(path: Path) -> int:
    """A descriptor of a lock file, which is created if it does not exist; nothing is written to it yet.

    Raises _NotALock for a file that vivace did not write, and OSError.
    """
    if path.is_symlink():
        raise _NotALock("is a link")
    if path.is_dir():
        raise _NotALock("is a folder")
    descriptor = systems.open_plain(path, os.O_RDWR | os.O_CREAT, 0o600)
    if problem := _problem(descriptor):
        systems.close(descriptor)
        raise _NotALock(problem)
    # locks of earlier versions could be opened by others
    systems.make_private(descriptor)
    return descriptor


def _problem(descriptor: int) -> str | None:
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        return "is not a regular file"
    if facts.st_nlink > 1:
        # writing to it would change the file under its other names
        return "has other names (hard links)"
    # root may continue what another user began, as in a container
    if systems.user_id() not in (None, 0, facts.st_uid):
        return "belongs to another user"
    return None if WRITTEN.fullmatch(_content(descriptor)) else "holds something other than a process id"


def _content(descriptor: int) -> bytes:
    return systems.read_at(descriptor, 64, 0) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    systems.write_at(descriptor, text.encode(), 0)
