"""Folders in which nobody but their user can put code, and files in them that are still what was written.

A library or a compiled program runs with the rights of whoever loads it, and its name in a cache can be guessed. A
cache may be shared between users, and a name below /tmp belongs to whoever takes it first.
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

# in the folder of torch.compile's programs, if vivace has made it: whatever else has that name is not removed
INDUCTOR_MARK = ".vivace"

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS_MAY_ENTER = stat.S_IXGRP | stat.S_IXOTH
# where a folder of one's own is looked for beside $TMPDIR
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")


@functools.cache
def say_once(text: str) -> None:
    """Warn of it the first time only: many a process asks for the same library again and again."""
    warn(text)


def doubt(path: Path, *, as_parent: bool = False) -> str | None:
    """Why another user could change what is at `path`, which is absolute, or in its way; None: only root could.

    It and all its parents have to belong to this user or root, and be writable by nobody else. A folder where all may
    write and each may remove their own alone (/tmp) does as a parent: what lies in it is looked at too. Below a folder
    that nobody else may enter (a home of mode 0700) rights to write say nothing: with umask 002 all have them. A link
    is doubted. On Windows, which keeps rights elsewhere, links are all that is. Raises OSError if it is not there.
    """
    shut = False
    for place in (*reversed(path.parents), path):
        facts = place.lstat()
        if stat.S_ISLNK(facts.st_mode):
            return f"{place} is a symbolic link"
        if systems.is_strangers(facts):
            return f"{place} belongs to another user (uid {facts.st_uid})"
        mode = systems.rights(facts)
        sticky = mode & stat.S_ISVTX and stat.S_ISDIR(mode)
        if mode & OTHERS_MAY_WRITE and not shut and not (sticky and (as_parent or place != path)):
            return f"others may write to {place} (mode {stat.S_IMODE(mode):04o})"
        shut = shut or not mode & OTHERS_MAY_ENTER
    return None


def make_private(folder: Path) -> None:
    """Make a folder, and parents that are missing, for this user alone (mode 0700). Raises OSError."""
    for place in (*reversed(folder.parents), folder):
        if not place.is_dir():
            # made by another process meanwhile
            with contextlib.suppress(FileExistsError):
                place.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(folder))


@functools.cache
def trusted_folder(folder: Path) -> Path:
    """`folder` without links, made if it is missing; a private one, and a line on stderr, if others could write there.

    Raises OSError if it can't be made, KernelError if there is no private folder either.
    """
    real = Path(os.path.realpath(folder))
    # before anything is made: nothing is left in a place that will not be used
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
        f"compiled code in {folder} is not trusted: {reason}. It is built anew in {private}. "
        "Take the others' right to write away (chmod go-w), or set VIVACE_CACHE to a folder of your own."
    )
    return private


@functools.cache
def private_folder() -> Path:
    """A folder that this user alone may write to: in $XDG_RUNTIME_DIR, else a temporary one, removed at the exit.

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
        f"no folder is private: others may write to the temporary folder too, {tempfile.gettempdir()}. Set TMPDIR."
    )


def _remove(folder: Path, process: int) -> None:
    # not at the end of a process that was forked
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def seal(record: Path, files: Iterable[Path]) -> None:
    """Write the hashes of `files`, which were just made, to `record`, and leave all to their user. Raises OSError."""
    lines = []
    for path in files:
        path.chmod(0o600)
        lines.append(f"{_hash_of(path)}  {path.name}\n")
    with os.fdopen(os.open(record, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write("".join(lines).encode())


def seal_broken(record: Path, files: Iterable[Path]) -> str | None:
    """Why `files` are not those whose hashes `seal` recorded; None: they are, and others can't change them.

    They lie in a folder that is trusted: between this look and their loading nobody else can put another in its place.
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
    """SHA-256 of a plain file of this user's. Raises OSError for a link or what is no file, ValueError for others'."""
    # a pipe would be waited for
    descriptor = systems.open_plain(path)
    if descriptor < 0:
        raise ValueError(f"{path.name} is a folder")
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or systems.is_strangers(facts) or systems.rights(facts) & OTHERS_MAY_WRITE:
            raise ValueError(f"{path.name} is no plain file of this user's alone")
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_compiled_programs(cache_dir: Path) -> None:
    """Let torch.compile keep what it compiles in `cache_dir`, and use as many processes as there are processors.

    By default it is /tmp/torchinductor_USER, which another user may have made: what lies there is run, and unpickled.
    A folder that the environment names is taken. To be called before torch's compiler is imported.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(num_cpus()))
    if not os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        place = cache_dir / "inductor"
        fresh = not place.is_dir() or not any(place.iterdir())
        try:
            folder = trusted_folder(place)
            if fresh:
                (folder / INDUCTOR_MARK).touch()
        except OSError:
            folder = private_folder()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
