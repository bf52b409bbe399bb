"""Makes sure that compiled code is loaded only from folders that nobody else can write to, and only unchanged.

A library runs with the permissions of whoever loads it, and its name in a cache can be guessed. A cache may be shared
between users, and a name in /tmp belongs to whoever creates it first.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from vivace import systems
from vivace.cpus import num_cpus
from vivace.errors import KernelError
from vivace.notices import warn

__all__ = [
    "INDUCTOR",
    "INDUCTOR_MARK",
    "doubt",
    "keep_compiled_programs",
    "make_private",
    "private_folder",
    "say_once",
    "seal",
    "seal_broken",
    "trusted_folder",
]

# the folder of torch.compile's programs in the cache, and what marks it as made by vivace: others are not removed
INDUCTOR, INDUCTOR_MARK = "inductor", ".vivace"

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS_MAY_ENTER = stat.S_IXGRP | stat.S_IXOTH
# where a private folder is created if $TMPDIR does not suit
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")


@functools.cache
def say_once(text: str) -> None:
    """Warn only once per text: the same library may be requested many times in a process."""
    warn(text)


def doubt(path: Path, *, as_parent: bool = False) -> str | None:
    """Why another user (except root) could change the absolute `path` or one of its parents; None if nobody could.

    The path and all its parents must belong to this user or root, and must not be links or writable by others, with two
    exceptions. A sticky folder such as /tmp is allowed as a parent, since the entry below it is checked too. Below a
    folder that nobody else may enter (a home of mode 0700) write permissions don't matter; with umask 002 all files
    have them. as_parent: `path` itself may be sticky. On Windows, which stores permissions elsewhere, only links are
    checked. Raises OSError if the path does not exist.
    """
    shut = False
    for place in (*reversed(path.parents), path):
        facts = place.lstat()
        if stat.S_ISLNK(facts.st_mode):
            return f"{place} is a symbolic link"
        if systems.is_foreign(facts):
            return f"{place} belongs to another user (uid {facts.st_uid})"
        mode = systems.mode_of(facts)
        sticky = mode & stat.S_ISVTX and stat.S_ISDIR(mode)
        if mode & OTHERS_MAY_WRITE and not shut and not (sticky and (as_parent or place != path)):
            return f"others may write to {place} (mode {stat.S_IMODE(mode):04o})"
        shut = shut or not mode & OTHERS_MAY_ENTER
    return None


def make_private(folder: Path) -> None:
    """Create a folder, and missing parents, for this user only (mode 0700). Raises OSError."""
    for place in (*reversed(folder.parents), folder):
        if not place.is_dir():
            # another process may create it meanwhile
            with contextlib.suppress(FileExistsError):
                place.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(folder))


@functools.cache
def trusted_folder(folder: Path) -> Path:
    """`folder` with links resolved, created if missing; if others could write there, a private folder and a warning.

    Raises OSError if it can't be created, KernelError if there is no private folder either.
    """
    real = Path(os.path.realpath(folder))
    # checked before creating anything, to leave nothing behind in a folder that is not used
    there = next(place for place in (real, *real.parents) if os.path.lexists(place))
    reason = doubt(there, as_parent=there != real)
    if reason is None:
        make_private(real)
        reason = doubt(real)
    if reason is None:
        return real
    private = private_folder() / f"{folder.name}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:8]}"
    make_private(private)
    say_once(
        f"compiled code in {folder} is not trusted: {reason}. It is built again in {private}. "
        "Remove write permission for others (chmod go-w), or set VIVACE_CACHE to a private folder."
    )
    return private


@functools.cache
def private_folder() -> Path:
    """A folder that only this user may write to: in $XDG_RUNTIME_DIR, else a temporary one that is removed at exit.

    Raises KernelError if there is none.
    """
    with contextlib.suppress(OSError, KeyError):
        runtime = Path(os.path.realpath(os.environ["XDG_RUNTIME_DIR"]))
        if doubt(runtime) is None:
            make_private(runtime / "vivace")
            if doubt(runtime / "vivace") is None:
                return runtime / "vivace"
    for base in map(os.path.realpath, (tempfile.gettempdir(), *TEMPORARY)):
        with contextlib.suppress(OSError):
            if doubt(Path(base), as_parent=True) is None:
                made = Path(tempfile.mkdtemp(prefix="vivace-", dir=base))
                atexit.register(_remove, made, os.getpid())
                return made
    raise KernelError(
        f"there is no private folder: others may write to the temporary folder too: got {tempfile.gettempdir()}. Set "
        "TMPDIR to a private folder."
    )


def _remove(folder: Path, process: int) -> None:
    # not when a forked child exits
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def seal(record: Path, files: Iterable[Path]) -> None:
    """Write the hashes of the new `files` to the file `record`, and make all of them private. Raises OSError."""
    lines = []
    for path in files:
        path.chmod(0o600)
        lines.append(f"{_hash_of(path)}  {path.name}\n")
    with os.fdopen(os.open(record, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write("".join(lines).encode())


def seal_broken(record: Path, files: Iterable[Path]) -> str | None:
    """Why `files` are not those whose hashes `seal` recorded; None if they are, and others can't change them.

    They are in a trusted folder, so nobody else can replace them between this check and loading them.
    """
    try:
        if reason := doubt(record.parent):
            return reason
        _hash_of(record)
        if record.read_bytes() == "".join(f"{_hash_of(path)}  {path.name}\n" for path in files).encode():
            return None
    except (OSError, ValueError) as error:
        return f"it can't be checked ({error})"
    return "it is not the one that was built (SHA-256)"


def _hash_of(path: Path) -> str:
    """The SHA-256 of a private regular file. Raises OSError for a link, ValueError for anything else."""
    # opened without following links and without blocking on a pipe
    descriptor = systems.open_plain(path)
    if descriptor < 0:
        raise ValueError(f"{path.name} is a folder")
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or systems.is_foreign(facts) or systems.mode_of(facts) & OTHERS_MAY_WRITE:
            raise ValueError(f"{path.name} is not a private regular file of this user")
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_compiled_programs(cache_dir: Path) -> None:
    """Make torch.compile cache its programs in `cache_dir`, and compile with as many processes as there are CPUs.

    Its default is /tmp/torchinductor_USER, which another user may have created, and whose contents are executed and
    unpickled. A folder set in the environment is kept. Call this before torch's compiler is imported.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(num_cpus()))
    if not os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        place = cache_dir / INDUCTOR
        fresh = not place.is_dir() or not any(place.iterdir())
        try:
            folder = trusted_folder(place)
            if fresh:
                (folder / INDUCTOR_MARK).touch()
        except OSError:
            folder = private_folder()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
