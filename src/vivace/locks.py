"""Locks between processes: on a run folder, and on what is being built in the cache. Never through a link or a pipe.

A lock is a small file beside what it guards, which its owner alone may open: to lock a file needs no right to write it.
What it says is for people: the id of the process that holds it.
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

__all__ = ["FolderLock", "lock_in_turn"]

# what vivace writes into a lock: a process id, and in a run folder whether its run has begun
WRITTEN = re.compile(rb"(?:\d{1,20}(?P<new> new)?)?")
SILENT_SECONDS = 2.0
POLL_SECONDS = 0.05
# who works writes into its lock so often; who has not for so long is hung, stopped, or no process of vivace's
BEAT_SECONDS = 20.0
PATIENCE_SECONDS = 600.0
# of the processor: what the beats themselves take is less
WORKED_SECONDS = 0.02
BEATING = "vivace-lock"


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
            holder = systems.holder(self._descriptor) or content.decode().removesuffix(" new")
            systems.close(self._descriptor)
            raise _in_use(folder, holder) from None
        if not systems.is_at(self._descriptor, path):
            # whoever held it before has just removed it: another process may hold a new one
            systems.close(self._descriptor)
            raise _in_use(folder, content.decode().removesuffix(" new"))
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


def _in_use(folder: Path, holder: str) -> RunFolderError:
    if holder == str(os.getpid()):
        return RunFolderError(
            f"another run of this process (a thread, or another cell of a notebook) is using the folder: "
            f"{folder}. Wait until it has ended or restart the kernel, or choose another with run=..."
        )
    return RunFolderError(
        f"another run is using the folder: {folder} (process {holder or 'unknown'}). "
        "Wait for it or end it, or choose another with --run (in Python run=...)."
    )


@contextlib.contextmanager
def lock_in_turn(path: Path, what: str) -> Iterator[None]:
    """Held by one process at a time; the others wait, and say so. what: what is built meanwhile, for the message.

    Raises OSError if the file can't be made, is a link, a pipe, or anything that vivace did not write, and TimeoutError
    where the process that holds it has done nothing for PATIENCE_SECONDS.
    """
    try:
        descriptor = _open_lock(path)
    except _NotALock as error:
        raise _NotALock(f"its lock {path.name} {error.strerror}") from None
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
    """Whether it could be locked; False on a file system without locks, where both go on. Raises TimeoutError.

    Who has to wait for longer than a moment says so, once.
    """
    began, said = time.monotonic(), False
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
        if now - beaten_at >= PATIENCE_SECONDS:
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"{_holder(descriptor)} holds its lock {path.name} and has done nothing for "
                f"{_minutes(PATIENCE_SECONDS)}: end it if it hangs",
            )
        if not said and now - began >= SILENT_SECONDS:
            warn(f"waiting for {_holder(descriptor)}, which is building {what}")
            said = True
        time.sleep(POLL_SECONDS)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"


def _beat(descriptor: int, ended: threading.Event) -> None:
    """Write into the lock now and then, while this process works."""
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
    """A descriptor of a lock file, made if there is none; nothing is written to it yet.

    Raises _NotALock for whatever vivace did not write there, OSError.
    """
    if path.is_symlink():
        raise _NotALock("is a link")
    if path.is_dir():
        raise _NotALock("is a folder")
    descriptor = systems.open_plain(path, os.O_RDWR | os.O_CREAT, 0o600)
    if problem := _problem(descriptor):
        systems.close(descriptor)
        raise _NotALock(problem)
    # of an earlier version others may have opened it
    systems.make_owners_alone(descriptor)
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
