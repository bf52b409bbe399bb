"""Atomic writes of files and folders, cleaning up after killed processes, hashes, and safe reading."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vivace import systems
from vivace.holes import check_solid

__all__ = [
    "atomic_file",
    "atomic_folder",
    "canonical_json",
    "held",
    "new_folder",
    "open_regular",
    "read_printable",
    "read_regular",
    "remove_leftovers",
    "sha256_of",
    "write_json",
]

# beside the path that is replaced: .NAME.TOKEN.tmp is being written, .NAME.TOKEN.old is the replaced one
LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL)
# of a name, so that the temporary one has at most 255 bytes, the limit of file systems
MAX_NAME_BYTES = 240
# on a file system without locks, a leftover that is unchanged for this long is considered abandoned
ABANDONED_SECONDS = 24 * 3600
# attempts to make a temporary file or folder before others remove it as a leftover, a second in all
MAX_TRIES = 200
# the bytes that `canonical_json` writes
PRINTABLE = bytes(range(0x20, 0x7F))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits. Raises OSError, also for a file of holes (`check_solid`)."""
    with path.open("rb") as file:
        check_solid(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path, max_bytes: int | None = None) -> IO[bytes]:
    """A file opened for reading. Raises OSError, also for a link, a pipe, a device, or more than `max_bytes`.

    An untrusted folder may hold pipes and devices, which would block or never end.
    """
    if path.is_symlink():
        # the system's own message would be "too many levels of symbolic links"
        raise OSError(errno.ELOOP, f"{path.name} is a link")
    descriptor = systems.open_plain(path)
    if descriptor < 0:
        raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
        if max_bytes is not None and facts.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"{path.name} is larger than {max_bytes:,} bytes")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file. Raises OSError as `open_regular` and `check_solid` do."""
    with open_regular(path, max_bytes) as file:
        check_solid(file.fileno())
        # bounded, because the file may be growing
        return file.read(max_bytes)


def read_printable(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file of `canonical_json`. Raises OSError as `open_regular` does, and ValueError at the first byte
    that `canonical_json` never writes: a sparse file of zeros would fill the memory."""
    content = bytearray()
    with open_regular(path, max_bytes) as file:
        while part := file.read(min(1 << 20, max_bytes - len(content))):
            if part.translate(None, PRINTABLE):
                raise ValueError(f"{path.name} is not JSON written by vivace")
            content += part
    return bytes(content)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and without blanks: equal values give equal bytes, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n")


@contextlib.contextmanager
def atomic_file(path: Path, *, check: Callable[[Path], object] | None = None) -> Iterator[IO[bytes]]:
    """A binary file, opened for writing and reading, that replaces `path` if the block succeeds, else is removed.

    Its bytes are synced to disk before it is renamed, so that a crash or a full disk leaves the old file. Missing
    parent folders are created. check(path) is called just before renaming, which does not happen if it raises.
    """
    path = path.absolute()
    with _parents_of(path), held(path, _new_file) as temporary:
        with open(temporary.descriptor, "w+b", closefd=False) as file:
            yield file
            file.flush()
            os.fsync(temporary.descriptor)
        if check is not None:
            check(path)
        temporary.close_if_immovable()
        temporary.path.replace(path)
    systems.sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path, *, sync: bool = True, check: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """A folder that replaces the folder `path` if the block succeeds, and is removed otherwise.

    sync: sync all files to disk first; without it a power failure may lose some. check(folder) is called on the folder
    that would be replaced, which stays if it raises. Leftovers of killed processes are removed. Raises OSError, also if
    `path` is not a folder.
    """
    path = path.absolute()
    with _parents_of(path):
        remove_leftovers(path.parent, path.name)
        with held(path, new_folder) as made:
            temporary = made.path
            yield temporary
            if sync:
                systems.sync_files(temporary)
            if os.path.lexists(path) or not _took_free_name(temporary, path):
                _replace_folder(temporary, path, check or (lambda _: None))
    if sync:
        systems.sync_folder(path.parent)


def _took_free_name(temporary: Path, path: Path) -> bool:
    """Rename to a name that was free a moment ago; False if another process has just taken it."""
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _replace_folder(temporary: Path, path: Path, check: Callable[[Path], object]) -> None:
    if path.is_symlink() or not path.is_dir():
        raise NotADirectoryError(f"not a folder, so it is not replaced by one: {path}")
    check(path)
    aside = path.with_name(temporary.name.removesuffix(".tmp") + ".old")
    # while it is locked, no other process mistakes the folder that is set aside for a leftover
    descriptor = _try_lock(path)
    try:
        if systems.exchange(temporary, path):
            temporary.rename(aside)
        else:
            path.rename(aside)
            _rename_or_undo(temporary, path, aside)
        try:
            # check again what is about to be removed: a file may have been added since
            check(aside)
        except BaseException:
            path.rename(temporary)
            aside.rename(path)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        if descriptor is not None:
            systems.close(descriptor)


def _rename_or_undo(temporary: Path, path: Path, aside: Path) -> None:
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise


@contextlib.contextmanager
def _parents_of(path: Path) -> Iterator[None]:
    """Create the missing parents of `path`, and remove them if the block raises."""
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise


@dataclass
class Held:
    """A temporary file or folder that this process has locked."""

    path: Path
    # -1 for a folder on systems that can't open folders
    descriptor: int

    def close_if_immovable(self) -> None:
        """Call before it is renamed or removed, which some systems (Windows) refuse for an open file."""
        self.descriptor = systems.close_if_immovable(self.descriptor)


@contextlib.contextmanager
def held(path: Path, make: Callable[[Path], int]) -> Iterator[Held]:
    """A temporary file or folder beside `path`, which `make` creates and this process locks; removed on an error."""
    tries = 0
    while True:
        stem = os.fsdecode(os.fsencode(path.name)[:MAX_NAME_BYTES])
        temporary = path.with_name(f".{stem}.{secrets.token_hex(4)}.tmp")
        try:
            descriptor = make(temporary)
        except FileNotFoundError:
            # another process removed it as a leftover before it was opened; two that do so must not keep in step
            if (tries := tries + 1) == MAX_TRIES:
                raise
            time.sleep(secrets.randbelow(10) / 1e3)
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        if _lock(descriptor) is not False and systems.is_at(descriptor, temporary):
            break  # else it was removed before it was locked
        systems.close(descriptor)
    made = Held(temporary, descriptor)
    try:
        yield made
    except BaseException:
        made.close_if_immovable()
        _remove(temporary)
        raise
    finally:
        systems.close(made.descriptor)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | systems.PRIVATE, 0o666)


def new_folder(path: Path, mode: int = 0o777) -> int:
    """Create a folder and return a descriptor of it; -1 on systems that can't open folders. For `held`."""
    path.mkdir(mode=mode)
    return systems.open_folder(path)


def remove_leftovers(folder: Path, name: str | re.Pattern[str] | None = None) -> tuple[str, ...]:
    """Remove the temporary files of killed processes directly in `folder`; returns their names.

    name: only those for the file or folder of this name, or whose name matches this pattern. Those of living processes
    are locked and stay. A folder that was set aside (.old) but never replaced gets its name back. Never raises OSError.
    """
    wanted = re.compile(re.escape(name)) if isinstance(name, str) else name
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = LEFTOVER.fullmatch(entry.name)
            if match and (wanted is None or wanted.fullmatch(match["name"])):
                found += [entry.name] * _clear(Path(entry.path), folder / match["name"], match["kind"])
    return tuple(sorted(found))


def _clear(leftover: Path, path: Path, kind: str) -> bool:
    """Remove a leftover, or restore its name `path`; False if another process still uses it."""
    descriptor = _try_lock(leftover)
    if descriptor is None:
        return False
    try:
        if not systems.is_at(descriptor, leftover):
            return False
        descriptor = systems.close_if_immovable(descriptor)
        if kind == "old" and not os.path.lexists(path):
            leftover.rename(path)
        else:
            _remove(leftover)
    except OSError:
        return False
    finally:
        systems.close(descriptor)
    return not leftover.exists()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _try_lock(path: Path) -> int | None:
    """A locked descriptor of this user's file or folder; None if a living process holds it, or if it is a link."""
    try:
        descriptor = systems.open_plain(path)
    except OSError:
        return None
    facts = os.fstat(descriptor) if descriptor >= 0 else path.lstat()
    # leave other users' files alone: the folder may be a shared one for temporary files
    locked = _lock(descriptor) if systems.user_id() in (None, facts.st_uid) else False
    if locked is None:
        locked = time.time() - max(facts.st_mtime, facts.st_ctime) > ABANDONED_SECONDS
    if locked:
        return descriptor
    systems.close(descriptor)
    return None


def _lock(descriptor: int) -> bool | None:
    """Whether it could be locked; None if the file system has no locks."""
    try:
        systems.lock(descriptor)
    except OSError as error:
        return False if isinstance(error, BlockingIOError) else None
    return True
