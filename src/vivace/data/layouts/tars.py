"""Lists the members of a tar in bounded time and memory, whatever its headers say (no torch here)."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

__all__ = ["NotPlain", "guarded_tarinfo", "plain_members"]

# extended headers (pax records and long names): the size of one, how many may precede a member, and the size of all
# together, which may grow by HEADER_BYTES_PER_MEMBER for each member
MAX_HEADER_BYTES = 1 << 16
MAX_IN_A_ROW = 8
MAX_HEADERS_BYTES = 4 << 20
HEADER_BYTES_PER_MEMBER = 2048
# tarfile copies the global headers for every member
MAX_GLOBAL_BYTES = 1 << 14
HEADER_TYPES = (b"x", b"g", b"X", b"L", b"K")
MAX_RECORDS = 1000
RECORD = re.compile(rb"(\d{1,6}) ([^=\n]{1,256})=")


class NotPlain(Exception):
    """A member is neither a regular file nor a folder."""


def plain_members(tar: tarfile.TarFile) -> Iterator[tuple[str, int, tarfile.TarInfo | None]]:
    """(name, size in bytes, entry that holds the bytes) of each member; the entry of a folder is None.

    The entry of a hard link is that of its target. Raises NotPlain for other links and for devices, TarError for a
    negative size.
    """
    files: dict[str, tarfile.TarInfo] = {}
    for info in tar:
        if info.size < 0:
            # tarfile would look for the next header before this one, and loop
            raise tarfile.ReadError(f"a negative size: {info.size}")
        if info.isdir():
            yield info.name, 0, None
            continue
        held = files.get(os.path.normpath(info.linkname)) if info.islnk() else info
        if held is None or not held.isreg():
            raise NotPlain(info.name)
        files[os.path.normpath(info.name)] = held
        yield info.name, held.size, held


def guarded_tarinfo() -> type[tarfile.TarInfo]:
    """A class for `tarfile.open(tarinfo=…)` that bounds the extended headers of one archive.

    Without bounds they can exhaust time and memory: tarfile reads them whole, searches them in quadratic time (before
    Python 3.11.10), recurses for each one, copies the global ones for every member, and expands the maps of sparse
    files. Make a new class for each archive: it counts.
    """

    class Guarded(tarfile.TarInfo):
        in_a_row = 0
        num_bytes = 0
        num_global_bytes = 0
        num_members = 0

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
            info = super().frombuf(buf, encoding, errors)
            if info.type == tarfile.GNUTYPE_SPARSE:
                raise tarfile.ReadError("a sparse file")
            if info.type not in HEADER_TYPES:
                cls.in_a_row = 0
                cls.num_members += 1
                return info
            cls.in_a_row += 1
            cls.num_bytes += info.size
            cls.num_global_bytes += info.size if info.type == b"g" else 0
            if not 0 <= info.size <= MAX_HEADER_BYTES:
                raise tarfile.ReadError(f"an extended header of {info.size:,} bytes")
            if cls.in_a_row > MAX_IN_A_ROW:
                raise tarfile.ReadError(f"more than {MAX_IN_A_ROW} extended headers in a row")
            allowed = MAX_HEADERS_BYTES + HEADER_BYTES_PER_MEMBER * cls.num_members
            if cls.num_bytes > allowed or cls.num_global_bytes > MAX_GLOBAL_BYTES:
                raise tarfile.ReadError(f"extended headers of {cls.num_bytes:,} bytes")
            return info

        def _proc_pax(self, tar: tarfile.TarFile) -> Any:
            assert tar.fileobj is not None
            plain = tar.fileobj
            block = plain.read(-(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            _check_records(block[: self.size])
            tar.fileobj = cast(IO[bytes], _Ahead(block, plain))
            try:
                return super()._proc_pax(tar)  # type: ignore[misc]
            finally:
                tar.fileobj = plain

    return Guarded


class _Ahead:
    """A file whose next block was already read; seeking back in a compressed file would decompress it all again."""

    def __init__(self, block: bytes, rest: Any) -> None:
        self._block: bytes | None = block
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        if self._block is not None:
            block, self._block = self._block, None
            return block
        return cast(bytes, self._rest.read(size))

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return cast(int, self._rest.seek(place, whence))

    def tell(self) -> int:
        return cast(int, self._rest.tell())


def _check_records(records: bytes) -> None:
    """Raise ReadError for pax records that are malformed, too many, slow to search, or describe a sparse file."""
    if re.search(rb"\d{200}", records):
        raise tarfile.ReadError("a number with over 200 digits in a pax header")
    place = 0
    for _ in range(MAX_RECORDS):
        if place >= len(records) or records[place] == 0:
            return
        match = RECORD.match(records, place)
        if match is None or int(match[1]) <= match.end() - place:
            raise tarfile.ReadError("a pax header is damaged")
        if match[2].startswith(b"GNU.sparse"):
            raise tarfile.ReadError("a sparse file")
        place += int(match[1])
    raise tarfile.ReadError(f"more than {MAX_RECORDS:,} records in a pax header")
