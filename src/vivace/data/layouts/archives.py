"""Unpacks zip and tar archives of a data set; refuses paths that lead outside and decompression bombs."""

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

# files of these names are written by vivace beside what was unpacked
OWN_NAMES = frozenset({LISTING, DOWNLOADED})
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
# images hardly compress: an archive that unpacks to 100 times its size is a bomb
MAX_RATIO = 100
# below this size the ratio means nothing: images of one colour compress well
RATIO_FLOOR_BYTES = 50 * 2**20
MAX_BYTES = 2 * 2**40
MAX_MEMBERS = 50_000_000
CHUNK = 1 << 20
# the folder in the cache
FOLDER = "archives"
# what an empty file counts as: it takes a header in the tar, an entry in memory and a block on the disk
MEMBER_BYTES = 4096
# what zipfile, tarfile and the decompressors raise for a damaged archive
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
    """The folder with an archive's contents, below all wrapper folders; unpacked into the cache only once.

    Raises ArchiveError.
    """
    path = path.resolve()
    key = hashlib.sha256(identity(path).encode("utf-8", "surrogateescape")).hexdigest()
    archives = (cache_dir or default_cache_dir()) / FOLDER
    try:
        folder = unpacked_once(archives, path.name.split(".")[0], key, lambda temporary: unpack(path, temporary))
    except OSError as error:
        raise ArchiveError(
            f"the archive can't be unpacked into the cache: {archives} ({error.strerror}). Set $VIVACE_CACHE or "
            "`cache_dir` to a writable folder."
        ) from None
    return _single_folder(folder)


def unpack(path: Path, target: Path) -> None:
    """Unpack an archive into an empty folder.

    Raises ArchiveError before anything is written for a member that is absolute, has "..", is a link or a device, or
    has a name that vivace uses itself; for an archive that unpacks to more than 100 times its size or to more than is
    free on the disk; and for a truncated tar. Raises it later for members that are damaged.
    """
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                members = list(_zip_members(archive, path))
                _check_sizes(members, path, target)
                _warn_of_repeated(members, path)
                for member in members:
                    assert isinstance(member.handle, zipfile.ZipInfo)
                    with archive.open(member.handle) as source:
                        _copy(source, target / member.name, member.num_bytes, path)
        else:
            with tarfile.open(path, tarinfo=guarded_tarinfo()) as tar:
                members = list(_tar_members(tar, path))
                _check_sizes(members, path, target)
                _warn_of_repeated(members, path)
                for member in members:
                    assert isinstance(member.handle, tarfile.TarInfo)
                    extracted = tar.extractfile(member.handle)
                    assert extracted is not None
                    _copy(extracted, target / member.name, member.num_bytes, path)
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        raise ArchiveError(f"the archive can't be unpacked: {path} ({reason}). Restore it, or pack it again.") from None


def _zip_members(archive: zipfile.ZipFile, path: Path) -> Iterator[_Member]:
    _check_count(path, len(archive.infolist()))
    for info in archive.infolist():
        # some programs on Windows write backslashes
        name = info.filename.replace("\\", "/")
        _check_name(name, path)
        # the upper half of the attributes holds a Unix mode: links are files whose text is the target
        kind = (info.external_attr >> 16) & 0o170000
        if kind not in (0, 0o100000, 0o040000):
            raise ArchiveError(f"the archive holds a link or device: {info.filename!r} in {path}. Pack regular files.")
        if not name.endswith("/"):
            yield _Member(name, info.file_size, info)


def _check_count(path: Path, num_members: int) -> None:
    """Raise BadZipFile unless the zip has as many members as its end record states: zipfile may overlook some."""
    with path.open("rb") as file:
        # the end record has 22 bytes, and a comment of up to 65,535 follows it
        file.seek(max(0, path.stat().st_size - 22 - 65_535))
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    stated = int.from_bytes(tail[end + 10 : end + 12], "little")
    # 65,535 may mean "too many for this field"; some programs write only the lowest 16 bits
    if stated not in (num_members % 65_536, 65_535):
        raise zipfile.BadZipFile(f"it lists {num_members:,} members and should list {stated:,}")


def _tar_members(tar: tarfile.TarFile, path: Path) -> Iterator[_Member]:
    limit = max(RATIO_FLOOR_BYTES, MAX_RATIO * path.stat().st_size)
    total = 0
    try:
        for name, size, held in plain_members(tar):
            _check_name(name, path)
            # a compressed tar is decompressed to be listed: stop as soon as it is too large
            total += max(size, MEMBER_BYTES)
            if total > limit:
                raise _bomb(path, total)
            if held is not None:
                yield _Member(name, size, held)
    except NotPlain as member:
        raise ArchiveError(
            f"the archive holds a link or device: {str(member)!r} in {path}. Pack regular files."
        ) from None
    _check_end(tar, limit)


def _check_end(tar: tarfile.TarFile, limit: int) -> None:
    """Raise TarError unless the listing ended at the archive's end: tarfile mistakes a damaged header for the end."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it is damaged or cut short at byte {tar.offset:,}")
    # a compressed file is verified by its checksum only when it is read to the end
    for _ in range(limit // CHUNK):
        if not tar.fileobj.read(CHUNK):
            break


def _check_name(name: str, path: Path) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or re.match(r"[A-Za-z]:[\\/]", name):
        raise ArchiveError(f"the archive holds a path that leads outside: {name!r} in {path}. Do not use it.")
    # on Windows "C:x", "x:y" and "con" lead elsewhere too
    if any(possible_name(part) != part for part in parts.parts):
        raise ArchiveError(
            f"the archive holds a file name that is invalid on this system: {name!r} in {path}. Rename the file and "
            "pack it again."
        )
    # some file systems ignore case
    if parts.parts and parts.parts[0].casefold() in OWN_NAMES:
        raise ArchiveError(
            f"the archive holds a name reserved for vivace: {name!r} in {path}. Pack it again without this file."
        )


def _check_sizes(members: list[_Member], path: Path, target: Path) -> None:
    total = sum(max(member.num_bytes, MEMBER_BYTES) for member in members)
    if len(members) > MAX_MEMBERS or total > MAX_BYTES:
        raise ArchiveError(f"the archive is too large: {len(members):,} files, {total:,} bytes in {path}. Split it.")
    if total > RATIO_FLOOR_BYTES and total > MAX_RATIO * path.stat().st_size:
        raise _bomb(path, total)
    free = shutil.disk_usage(target).free
    if total > free:
        raise ArchiveError(
            f"the disk is too full: {path} unpacks to {total:,} bytes, {free:,} are free. Free some space."
        )


def _warn_of_repeated(members: list[_Member], path: Path) -> None:
    """Warn of names that occur more than once: the last member of a name is the one that is kept."""
    counts = Counter(str(PurePosixPath(member.name)) for member in members)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        warn(f"{len(repeated):,} names occur more than once in {path}; the last is used: {repeated[0]!r:.100}")


def _bomb(path: Path, total: int) -> ArchiveError:
    return ArchiveError(
        f"the archive is a decompression bomb: {path} of {path.stat().st_size:,} bytes unpacks to {total:,} or more, "
        f"over {MAX_RATIO} times its size. Do not use it."
    )


def _copy(source: IO[bytes], path: Path, num_bytes: int, archive: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    left = num_bytes
    with path.open("wb") as file:
        while chunk := source.read(CHUNK):
            left -= len(chunk)
            # the size in the header may be wrong
            if left < 0:
                raise ArchiveError(
                    f"a member is larger than the archive states: {path.name!r} in {archive}. Do not use it."
                )
            file.write(chunk)


def _single_folder(folder: Path) -> Path:
    """The folder below all wrappers: archives often hold a single folder, perhaps beside a README.

    Stops at a manifest or an image beside that folder: a manifest names files relative to itself.
    """
    for _ in range(6):
        entries = [entry for entry in os.scandir(folder) if not is_system(entry.name)]
        folders = [entry for entry in entries if entry.is_dir()]
        if len(folders) != 1 or any(is_manifest(Path(entry.path)) or is_candidate(entry) for entry in entries):
            return folder
        folder = Path(folders[0].path)
    return folder
