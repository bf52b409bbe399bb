"""Images in tar shards, as of webdataset: read in their order, never unpacked to disk, and never trusted."""

from __future__ import annotations

import functools
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

from vivace import systems
from vivace.data.decoding.decode import MAX_BYTES
from vivace.data.decoding.formats import EXTENSIONS, HEAD_BYTES, REFUSED_EXTENSIONS, sniff
from vivace.data.layouts.listing import LeftOut
from vivace.data.layouts.splitnames import is_system
from vivace.data.layouts.tars import guarded_tarinfo
from vivace.errors import ImageError
from vivace.holes import check_solid
from vivace.sources.items import Item, NotHere, Slice
from vivace.sources.paths import Left

__all__ = ["DAMAGE", "damaged", "streamed_items", "tar_items"]

PLAIN = ".tar"
# images hardly compress: what unpacks to so many times its size, or to more than this, is a bomb
MAX_RATIO, FREE_BYTES = 100, 50 * 2**20
MEMBER_BYTES = 4096
# what tarfile and the decompressors raise
DAMAGE = (OSError, tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError)


def damaged(name: str, reason: object) -> Item:
    """What stands for the images of a file of many that can't be read, or can't be read on."""
    told = " ".join(str(reason).split())[:200] or type(reason).__name__
    error = ImageError(
        f"the file can't be read, or not to its end: {name} ({told}). Restore it from a copy, or make it again.",
        problem="damaged_archive",
    )
    return Item(name, error, "damaged")


def tar_items(path: str, left: Left) -> Iterator[Item]:
    """The images in a tar, named PATH/MEMBER, in its order; what else it holds is added to `left`.

    Only regular files are taken, by their extension, or by their first bytes where that is unknown, as in folders. A
    tar that is damaged, cut short or a decompression bomb ends in an item with the error, after the images before that.
    Of a plain tar no image is read here: decoders read it where it lies.
    """
    try:
        if path.lower().endswith(PLAIN):
            yield from _plain(path, left)
        else:
            yield from _compressed(path, left)
    except DAMAGE as error:
        yield damaged(path, error)


def _plain(path: str, left: Left) -> Iterator[Item]:
    held = _Open(path)
    facts = os.fstat(held.descriptor)
    check_solid(held.descriptor)
    # a descriptor of its own: where there is no pread, reading moves the position
    with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_guarded()) as tar:  # noqa: PTH123
        for info, _ in _images(tar, path, left):
            name = f"{path}/{info.name}"
            if info.offset_data + info.size > facts.st_size:
                raise EOFError(f"it ends in {info.name}")
            content: Any = _too_large(name, info.size) or Slice(
                functools.partial(_part_of, held, info.size, info.offset_data), info.size
            )
            yield Item(name, content, f"{facts.st_mtime_ns}:{info.offset_data}:{info.size}")
        _check_end(tar)


def _compressed(path: str, left: Left) -> Iterator[Item]:
    facts = os.stat(path)  # noqa: PTH116
    limit = max(FREE_BYTES, MAX_RATIO * facts.st_size)
    with tarfile.open(path, mode="r:*", tarinfo=_guarded()) as tar:
        for info, file in _images(tar, path, left, limit):
            name = f"{path}/{info.name}"
            content: Any = _too_large(name, info.size) or _bytes(file, info)
            yield Item(name, content, f"{facts.st_size}:{facts.st_mtime_ns}:{info.size}")
        _check_end(tar)


def streamed_items(name: str, file: IO[bytes], stamp: str, left: Left, most: int = MAX_BYTES) -> Iterator[Item]:
    """The same of a tar that comes from elsewhere, read once from its start; it may be compressed.

    most: bytes that an image may have.
    """
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_guarded()) as tar:
        for info, member in _images(tar, name, left):
            content: Any = _too_large(f"{name}/{info.name}", info.size, most) or _bytes(member, info)
            yield Item(f"{name}/{info.name}", content, f"{stamp}:{info.size}")


def _images(
    tar: tarfile.TarFile, path: str, left: Left, limit: int | None = None
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The headers of the regular files that are images, and these files. Raises TarError for a bomb."""
    total = 0
    while (info := tar.next()) is not None:
        # tarfile keeps every header otherwise
        cast(Any, tar).members = []
        if info.size < 0:
            # it would look for the next header before this one, and loop
            raise tarfile.ReadError(f"a negative size: {info.size}")
        total += max(info.size, MEMBER_BYTES)
        if limit is not None and total > limit:
            raise tarfile.ReadError(f"a decompression bomb: it unpacks to over {MAX_RATIO} times its size")
        if info.isdir():
            continue
        name = f"{path}/{info.name}"
        if not info.isreg():
            left.append(LeftOut(name, "links" if info.issym() or info.islnk() else "that are no regular files"))
        elif not info.name.rpartition("/")[2]:
            left.append(LeftOut(name, "without a name"))
        elif any(is_system(part) for part in info.name.split("/") if part not in ("", ".", "..")):
            left.append(LeftOut(name, "hidden"))
        else:
            file = tar.extractfile(info)
            assert file is not None
            if _is_image(info.name, file):
                yield info, file
            else:
                left.append(name)


def _is_image(name: str, file: IO[bytes]) -> bool:
    # webdataset's names may have more dots: 000001.left.jpg
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122
    if extension in REFUSED_EXTENSIONS:
        return False
    # what is looked at stays in the buffer: a stream can't go back
    return extension in EXTENSIONS or sniff(cast(io.BufferedReader, file).peek(HEAD_BYTES)[:HEAD_BYTES]) is not None


def _too_large(name: str, num_bytes: int, most: int = MAX_BYTES) -> ImageError | None:
    if num_bytes <= most:
        return None
    return ImageError(
        f"too large for an image: {name} has {num_bytes:,} bytes, at most {most:,} are read. Leave it out.",
        problem="bomb",
    )


def _bytes(file: IO[bytes], info: tarfile.TarInfo) -> bytes:
    content = file.read(info.size)
    if len(content) != info.size:
        raise EOFError(f"it ends in {info.name}")
    return content


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise TarError unless the listing ended at the archive's end: tarfile mistakes a damaged header for the end."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it is damaged or cut short at byte {tar.offset:,}")


def _guarded() -> Any:
    return guarded_tarinfo()


class _Open:
    """A tar that stays open as long as an image in it may be read."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self._path = os.path.abspath(path)  # noqa: PTH100
        self.descriptor = os.open(path, os.O_RDONLY | systems.PRIVATE)

    def __reduce__(self) -> tuple[Any, ...]:
        facts = os.fstat(self.descriptor)
        return _Elsewhere, (self._path, facts.st_size, facts.st_mtime_ns)

    def read(self, count: int, offset: int) -> bytes:
        """`count` bytes from `offset` on; thread-safe. Raises OSError, also if the file ends before."""
        content = systems.read_at(self.descriptor, count, offset)
        while len(content) < count:
            # one call gives no more than 2 GiB, or what the system likes
            part = systems.read_at(self.descriptor, count - len(content), offset + len(content))
            if not part:
                raise OSError("the file was cut short")
            content += part
        return content

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _part_of(tar: _Open | _Elsewhere, count: int, offset: int) -> bytes:
    # no method of the tar itself: sent to another process by Ray it would stay a method of _Open
    return tar.read(count, offset)


@functools.lru_cache(maxsize=4)
def _opened_again(path: str, num_bytes: int, changed_ns: int) -> _Open:
    """The tar of this path, size and date. Raises NotHere if there is none here."""
    try:
        found = _Open(path)
    except OSError:
        raise NotHere(path) from None
    facts = os.fstat(found.descriptor)
    if (facts.st_size, facts.st_mtime_ns) != (num_bytes, changed_ns):
        raise NotHere(path)
    return found


@dataclass(frozen=True)
class _Elsewhere:
    """An open tar, sent to another process, perhaps of another machine: opened there when an image of it is read."""

    path: str
    num_bytes: int
    changed_ns: int

    def read(self, count: int, offset: int) -> bytes:
        """As `_Open.read`; raises NotHere where this tar is not."""
        return _opened_again(self.path, self.num_bytes, self.changed_ns).read(count, offset)
