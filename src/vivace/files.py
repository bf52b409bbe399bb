"""Files that are whole or absent: atomic writes, what dead processes left of them, hashes, and regular files only."""

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

# beside the path that it is to replace: .NAME.TOKEN.tmp is being written, .NAME.TOKEN.old was set aside
LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL)
# of a name, in bytes, so that its temporary one fits a file system's 255
MAX_NAME_BYTES = 240
# where a file system has no locks: what nobody changed for so long is nobody's
ABANDONED_SECONDS = 24 * 3600
# of a temporary name that others take for a leftover as soon as it is there
MAX_TRIES = 20
# all that `canonical_json` writes
PRINTABLE = bytes(range(0x20, 0x7F))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits. Raises OSError, also where `check_solid` does."""
    with path.open("rb") as file:
        check_solid(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Path, max_bytes: int | None = None) -> IO[bytes]:
    """A file, opened to be read. Raises OSError, also for a link, a pipe, a device, or more than `max_bytes`.

    A stranger's folder may hold any of them, and they would be waited for, or never end.
    """
    if path.is_symlink():
        # what the system says of one is "too many levels of symbolic links"
        raise OSError(errno.ELOOP, f"{path.name} is a link")
    descriptor = systems.open_plain(path)
    if descriptor < 0:
        raise OSError(errno.EINVAL, f"{path.name} is no regular file")
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is no regular file")
        if max_bytes is not None and facts.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"{path.name} is larger than {max_bytes:,} bytes")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, max_bytes: int) -> bytes:
    """A file's bytes. Raises OSError as `open_regular` does, and where `check_solid` does."""
    with open_regular(path, max_bytes) as file:
        check_solid(file.fileno())
        # what it grows by meanwhile is left out
        return file.read(max_bytes)


def read_printable(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file of `canonical_json`. Raises OSError as `open_regular` does, and ValueError at the first byte
    that is none of its: a file of zeros takes no room on a disk, and all of the memory."""
    content = bytearray()
    with open_regular(path, max_bytes) as file:
        while part := file.read(min(1 << 20, max_bytes - len(content))):
            if part.translate(None, PRINTABLE):
                raise ValueError(f"{path.name} is no JSON of vivace's")
            content += part
    return bytes(content)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spare blanks: equal values give equal bytes, fit for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n")


@contextlib.contextmanager
def atomic_file(path: Path, *, check: Callable[[Path], object] | None = None) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, and vanishes when it does not.

    It can be read, too. Its bytes are on the disk before the name changes: a crash or a full disk leaves the old file.
    Missing parent folders are made. check(path) is called just before the name changes; nothing does if it raises.
    """
    path = path.absolute()
    with _parents_of(path), held(path, _new_file) as temporary:
        with open(temporary.descriptor, "w+b", closefd=False) as file:
            yield file
            file.flush()
            os.fsync(temporary.descriptor)
        if check is not None:
            check(path)
        temporary.let_go()
        temporary.path.replace(path)
    systems.sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path, *, sync: bool = True, check: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """A folder that takes the place of the folder `path` when the block ends well, and vanishes when it does not.

    sync False: it takes it before all bytes are on the disk, and a machine that loses its power may lose some.
    check(folder) is called on what would be replaced: nothing is changed if it raises. What dead processes left of
    earlier tries is removed. Raises OSError if `path` is no folder.
    """
    path = path.absolute()
    with _parents_of(path):
        remove_leftovers(path.parent, path.name)
        with held(path, new_folder) as made:
            temporary = made.path
            yield temporary
            if sync:
                systems.sync_files(temporary)
            if os.path.lexists(path) or not _took_free_place(temporary, path):
                _replace_folder(temporary, path, check or (lambda _: None))
    if sync:
        systems.sync_folder(path.parent)


def _took_free_place(temporary: Path, path: Path) -> bool:
    """Rename to a name that nothing had a moment ago; False if another process has just taken it."""
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _replace_folder(temporary: Path, path: Path, check: Callable[[Path], object]) -> None:
    if path.is_symlink() or not path.is_dir():
        raise NotADirectoryError(f"not a folder, so no folder takes its place: {path}")
    check(path)
    aside = path.with_name(temporary.name.removesuffix(".tmp") + ".old")
    # while it is held nobody takes what is set aside for a dead process's
    descriptor = _try_lock(path)
    try:
        if systems.exchange(temporary, path):
            temporary.rename(aside)
        else:
            path.rename(aside)
            _rename_or_undo(temporary, path, aside)
        try:
            # again, of what is removed now: a file may have been put there since
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
    """The folders above `path` exist meanwhile; those that were made for it are removed if the block raises."""
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
    """A temporary file or folder that this process holds."""

    path: Path
    descriptor: int
    """By which it is locked; -1 for a folder where folders can't be opened."""

    def let_go(self) -> None:
        """To be called before it is renamed or removed: some systems do not let an open file."""
        self.descriptor = systems.let_go(self.descriptor)


@contextlib.contextmanager
def held(path: Path, make: Callable[[Path], int]) -> Iterator[Held]:
    """A new temporary name beside `path`, locked while this process lives; gone if the block raises."""
    tries = 0
    while True:
        stem = os.fsdecode(os.fsencode(path.name)[:MAX_NAME_BYTES])
        temporary = path.with_name(f".{stem}.{secrets.token_hex(4)}.tmp")
        try:
            descriptor = make(temporary)
        except FileNotFoundError:
            # taken for a leftover before it was opened, or the folder with it
            if (tries := tries + 1) == MAX_TRIES:
                raise
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        # between its making and its lock another process may have taken it for a leftover: then once more
        if _lock(descriptor) is not False and systems.is_at(descriptor, temporary):
            break
        systems.close(descriptor)
    made = Held(temporary, descriptor)
    try:
        yield made
    except BaseException:
        made.let_go()
        _remove(temporary)
        raise
    finally:
        systems.close(made.descriptor)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | systems.PRIVATE, 0o666)


def new_folder(path: Path, mode: int = 0o777) -> int:
    path.mkdir(mode=mode)
    return systems.open_folder(path)


def remove_leftovers(folder: Path, name: str | re.Pattern[str] | None = None) -> tuple[str, ...]:
    """Names of what killed processes left of atomic writes in `folder` itself, now removed; call it at a start.

    name: only what was to become that file or folder, or one whose name a pattern matches. What a living process is
    writing holds a lock and stays. A folder that was set aside (.old) and nothing took its place since gets its name
    back. Never raises OSError.
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
    """Remove a leftover, or give it back its name `path`; False if it is somebody's still."""
    descriptor = _try_lock(leftover)
    if descriptor is None:
        return False
    try:
        if not systems.is_at(descriptor, leftover):
            return False
        descriptor = systems.let_go(descriptor)
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
    """A descriptor of this user's file or folder that no living process holds; None if one does, or if it is a link."""
    try:
        descriptor = systems.open_plain(path)
    except OSError:
        return None
    facts = os.fstat(descriptor) if descriptor >= 0 else path.lstat()
    # another user's is another user's matter: the folder may be one for temporary files of all
    locked = _lock(descriptor) if systems.user_id() in (None, facts.st_uid) else False
    if locked is None:
        locked = time.time() - max(facts.st_mtime, facts.st_ctime) > ABANDONED_SECONDS
    if locked:
        return descriptor
    systems.close(descriptor)
    return None


def _lock(descriptor: int) -> bool | None:
    """Whether it could be locked; None where the file system has no such locks."""
    try:
        systems.lock(descriptor)
    except OSError as error:
        return False if isinstance(error, BlockingIOError) else None
    return True
