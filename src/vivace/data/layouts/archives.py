"""zip and tar archives of a data set, unpacked so that nothing lands outside and nothing explodes."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from vivace.cachedir import DOWNLOADED, default_cache_dir
from vivace.data.layouts.listing import is_candidate
from vivace.data.layouts.manifests import is_manifest
from vivace.data.layouts.splitnames import is_system
from vivace.data.layouts.tars import NotPlain, guarded_tarinfo, plain_members
from vivace.data.layouts.unpacked import LISTING, identity, unpacked_once
from vivace.errors import ArchiveError
from vivace.notices import warn
from vivace.systems import possible_name

__all__ = ["FOLDER", "is_archive", "unpack", "unpacked"]

# beside what was unpacked vivace writes files of these names
OWN_NAMES = frozenset({LISTING, DOWNLOADED})
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
# images hardly compress: 100 times is a bomb, whatever its size
MAX_RATIO = 100
# below this size a ratio says nothing: an empty PNG of one colour compresses well
RATIO_FLOOR_BYTES = 50 * 2**20
MAX_BYTES = 2 * 2**40
MAX_MEMBERS = 50_000_000
CHUNK = 1 << 20
# in the cache
FOLDER = "archives"
# an empty file is not free either: a header in a tar, an entry in memory, a block on the disk
MEMBER_BYTES = 4096
# what the libraries raise, somewhere, for a damaged archive
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError,
    NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    """A regular file in an archive."""

    name: str
    num_bytes: int
    handle: zipfile.ZipInfo | tarfile.TarInfo


def is_archive(path: Path) -> bool:
    """Whether the extension is that of a supported archive."""
    return path.name.lower().endswith(SUFFIXES)


def unpacked(path: Path, cache_dir: Path | None) -> Path:
    """The folder of what an archive holds, below all wrappers; unpacked into the cache once. Raises ArchiveError."""
    path = path.resolve()
    key = hashlib.sha256(identity(path).encode("utf-8", "surrogateescape")).hexdigest()
    archives = (cache_dir or default_cache_dir()) / FOLDER
    try:
        folder = unpacked_once(archives, path.name.split(".")[0], key, lambda temporary: unpack(path, temporary))
    except OSError as error:
        raise ArchiveError(
            f"the archive can't be unpacked into the cache: {archives} ({error.strerror}). Give a folder that can "
            "be written by $VIVACE_CACHE or --cache-dir."
        ) from None
    return _single_folder(folder)


def unpack(path: Path, target: Path) -> None:
    """Unpack an archive into an empty folder.

    Raises ArchiveError before anything is written for a member that is absolute, has "..", is a link or a device,
    or has the name of a file of vivace's own, for an archive that unpacks to more than 100 times its size or more than
    the disk has free, and for a tar cut short.
    """
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                members = list(_zip_members(archive, path))
                _check_sizes(members, path, target)
                _tell_repeated(members, path)
                for member in members:
                    assert isinstance(member.handle, zipfile.ZipInfo)
                    with archive.open(member.handle) as source:
                        _copy(source, target / member.name, member.num_bytes, path)
        else:
            with tarfile.open(path, tarinfo=guarded_tarinfo()) as tar:
                members = list(_tar_members(tar, path))
                _check_sizes(members, path, target)
                _tell_repeated(members, path)
                for member in members:
                    assert isinstance(member.handle, tarfile.TarInfo)
                    extracted = tar.extractfile(member.handle)
                    assert extracted is not None
                    _copy(extracted, target / member.name, member.num_bytes, path)
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        raise ArchiveError(f"the archive can't be unpacked: {path} ({reason}). Restore or pack it again.") from None


def _zip_members(archive: zipfile.ZipFile, path: Path) -> Iterator[_Member]:
    _check_count(path, len(archive.infolist()))
    for info in archive.infolist():
        # some programs on Windows write their own separator
        name = info.filename.replace("\\", "/")
        _check_name(name, path)
        # the upper half of the attributes holds a Unix mode: links are files whose text is the target
        kind = (info.external_attr >> 16) & 0o170000
        if kind not in (0, 0o100000, 0o040000):
            raise ArchiveError(f"the archive holds a link or device: {info.filename!r} in {path}. Pack plain files.")
        if not name.endswith("/"):
            yield _Member(name, info.file_size, info)


def _check_count(path: Path, num_members: int) -> None:
    """Raise BadZipFile unless the zip lists as many members as it says: a wrong length may hide some from zipfile."""
    with path.open("rb") as file:
        # the end record of 22 bytes is followed by a comment of up to 65,535
        file.seek(max(0, path.stat().st_size - 22 - 65_535))
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    told = int.from_bytes(tail[end + 10 : end + 12], "little")
    # 65,535 may mean "more than fit here"; some programs write the lowest 16 bits only
    if told not in (num_members % 65_536, 65_535):
        raise zipfile.BadZipFile(f"it lists {num_members:,} members and should list {told:,}")


def _tar_members(tar: tarfile.TarFile, path: Path) -> Iterator[_Member]:
    limit = max(RATIO_FLOOR_BYTES, MAX_RATIO * path.stat().st_size)
    total = 0
    try:
        for name, size, held in plain_members(tar):
            _check_name(name, path)
            # a compressed tar has to be unpacked to be listed: stop as soon as it is too much
            total += max(size, MEMBER_BYTES)
            if total > limit:
                raise _bomb(path, total)
            if held is not None:
                yield _Member(name, size, held)
    except NotPlain as member:
        raise ArchiveError(
            f"the archive holds a link or device: {str(member)!r} in {path}. Pack plain files."
        ) from None
    _check_end(tar, limit)


def _check_end(tar: tarfile.TarFile, limit: int) -> None:
    """Raise TarError unless the listing ended where the archive does: tarfile takes a broken header for the end."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it is damaged or cut short at byte {tar.offset:,}")
    # a compressed file is checked against its checksum only when it is read to its end
    for _ in range(limit // CHUNK):
        if not tar.fileobj.read(CHUNK):
            break


def _check_name(name: str, path: Path) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or re.match(r"[A-Za-z]:[\\/]", name):
        raise ArchiveError(f"the archive holds a path that leads outside: {name!r} in {path}. Do not use it.")
    # "C:x", "x:y" and "con" lead elsewhere too, on Windows
    if any(possible_name(part) != part for part in parts.parts):
        raise ArchiveError(
            f"the archive holds a name that this system can't have: {name!r} in {path}. Pack it anew under another."
        )
    # some file systems do not tell capitals from small letters
    if parts.parts and parts.parts[0].casefold() in OWN_NAMES:
        raise ArchiveError(
            f"the archive holds a name that vivace keeps for itself: {name!r} in {path}. Pack it again without that."
        )


def _check_sizes(members: list[_Member], path: Path, target: Path) -> None:
    total = sum(max(member.num_bytes, MEMBER_BYTES) for member in members)
    if len(members) > MAX_MEMBERS or total > MAX_BYTES:
        raise ArchiveError(f"the archive is too large: {len(members):,} files, {total:,} bytes in {path}. Split it.")
    if total > RATIO_FLOOR_BYTES and total > MAX_RATIO * path.stat().st_size:
        raise _bomb(path, total)
    free = shutil.disk_usage(target).free
    if total > free:
        raise ArchiveError(f"the disk is too full: {path} unpacks to {total:,} bytes, {free:,} are free. Make room.")


def _tell_repeated(members: list[_Member], path: Path) -> None:
    """Warn of names that come more than once: the last of each is what is unpacked."""
    counts = Counter(str(PurePosixPath(member.name)) for member in members)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        warn(f"{len(repeated):,} names come more than once in {path}, and the last counts: {repeated[0]!r:.100}")


def _bomb(path: Path, total: int) -> ArchiveError:
    return ArchiveError(
        f"the archive is a bomb: {path} of {path.stat().st_size:,} bytes unpacks to {total:,} or more, "
        f"over {MAX_RATIO} times. Do not use it."
    )


def _copy(source: IO[bytes], path: Path, num_bytes: int, archive: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    left = num_bytes
    with path.open("wb") as file:
        while chunk := source.read(CHUNK):
            left -= len(chunk)
            # headers may lie
            if left < 0:
                raise ArchiveError(f"the archive lies about a size: {path.name!r} in {archive}. Do not use it.")
            file.write(chunk)


def _single_folder(folder: Path) -> Path:
    """The folder, or the only folder in it, and so on: archives often wrap what they hold, beside a README.

    A manifest that lies beside it names files from there.
    """
    for _ in range(6):
        entries = [entry for entry in os.scandir(folder) if not is_system(entry.name)]
        folders = [entry for entry in entries if entry.is_dir()]
        if len(folders) != 1 or any(is_manifest(Path(entry.path)) or is_candidate(entry) for entry in entries):
            return folder
        folder = Path(folders[0].path)
    return folder
