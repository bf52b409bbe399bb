"""Images that stay in their file: rows are read when they are asked for, and their bytes can be checked.

Not a memory map: a file that is cut short under one, or a disk that fails, ends the process by SIGBUS without a word. A
read that fails can say so, and costs 1 to 2 µs more for an image.
"""

from __future__ import annotations

import math
import operator
import os
import sys
import warnings
import weakref
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from vivace import systems
from vivace.errors import CacheDamaged
from vivace.files import open_regular
from vivace.hardware import num_cpus

__all__ = ["Pixels", "StoredImages", "checksums", "first_changed_block", "read_column"]

# of a file under one checksum. CRC-32 goes through 1.5 GB/s on one core, blake2b through 0.6
BLOCK_BYTES = 4 * 2**20
# more threads than that wait for memory
MAX_THREADS = 4


class Pixels(Protocol):
    """uint8 [N, H, W, C], in memory or in a file; what is taken out of it along the first axis are numpy arrays."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...

    def __array__(self) -> np.ndarray: ...


class StoredImages:
    """uint8 [N, H, W, C] in a .npy file, read-only: indexed as an array is, along the first axis alone.

    What is taken is a copy. Raises CacheDamaged from any use once the file is cut short, or can't be read any more; a
    file that takes its place under the same name is not looked at.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError if it is no such file, or not exactly as long as it says."""
        self._path = path.absolute()
        with open_regular(path) as file:
            self.shape, dtype, self._offset = _header(file, path.name)
            self._descriptor = os.dup(file.fileno())
        # no ResourceWarning, as an open file would give, and no thread that still reads at the exit meets a closed one
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        if dtype != self.dtype or len(self.shape) != self.ndim:
            raise ValueError(f"{path.name} holds {dtype} {self.shape}")
        self._row_bytes = math.prod(self.shape[1:])
        _check_size(self._descriptor, self._offset + math.prod(self.shape), path.name)

    @property
    def nbytes(self) -> int:
        return len(self) * self._row_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: the same file, opened again."""
        facts = os.fstat(self._descriptor)
        return _opened_again, (self._path, facts.st_dev, facts.st_ino)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            return self._read(np.arange(*rows.indices(len(self))))
        positions = np.asarray(rows)
        if positions.ndim == 0:
            return self._read(np.asarray([operator.index(rows)]))[0]  # type: ignore[arg-type]
        if positions.dtype == bool:
            if positions.shape != (len(self),):
                raise IndexError(f"there are {len(self):,} images: got a mask of shape {positions.shape}")
            return self._read(np.flatnonzero(positions))
        # numpy makes floats of an empty list
        return self._read(positions if positions.size else np.empty(0, dtype=np.int64))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("images in a file can't be had without a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def _read(self, positions_n: np.ndarray) -> np.ndarray:
        if positions_n.size and not -len(self) <= positions_n.min() <= positions_n.max() < len(self):
            raise IndexError(f"there are {len(self):,} images: got {positions_n.min()} to {positions_n.max()}")
        positions_n = positions_n % len(self) if positions_n.size else positions_n
        out = np.empty((len(positions_n), *self.shape[1:]), dtype=np.uint8)
        if out.size:
            flat = memoryview(out).cast("B")  # type: ignore[arg-type]
            # neighbours in the file are one read
            ends = [*(np.flatnonzero(np.diff(positions_n) != 1) + 1).tolist(), len(positions_n)]
            starts = [0, *ends[:-1]]
            for start, end, first in zip(starts, ends, positions_n[starts].tolist(), strict=True):
                self._fill(
                    flat[start * self._row_bytes : end * self._row_bytes], self._offset + first * self._row_bytes
                )
        return out

    def _fill(self, target: memoryview, offset: int) -> None:
        while target:
            try:
                count = systems.read_into(self._descriptor, target, offset)
            except OSError as error:
                raise _damaged(self._path, str(error.strerror)) from error
            if not count:
                raise _damaged(self._path, f"it ends at byte {os.fstat(self._descriptor).st_size:,}")
            target, offset = target[count:], offset + count


def _opened_again(path: Path, device: int, inode: int) -> StoredImages:
    try:
        facts = path.stat()
        if (facts.st_dev, facts.st_ino) == (device, inode):
            return StoredImages(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    raise _damaged(path, "another one is in its place")


def _damaged(path: Path, reason: str) -> CacheDamaged:
    return CacheDamaged(
        f"the cache was damaged while it was in use: {path} ({reason}). Start again, a training with --resume: the "
        "images are then read anew."
    )


def read_column(path: Path, dtype: Any, length: int) -> np.ndarray:
    """[length] of `dtype` out of a .npy file. Raises OSError or ValueError if it is no such file, of no other size."""
    with open_regular(path) as file:
        shape, found, offset = _header(file, path.name)
        if found != dtype or shape != (length,):
            raise ValueError(f"{path.name} holds {found} {shape}, expected {np.dtype(dtype)} {(length,)}")
        # before room is made for it
        _check_size(file.fileno(), offset + length * found.itemsize, path.name)
        return np.frombuffer(bytearray(file.read(length * found.itemsize)), dtype=found)


def _check_size(descriptor: int, expected: int, name: str) -> None:
    size = os.fstat(descriptor).st_size
    if size != expected:
        raise ValueError(f"{name} has {size:,} bytes, expected {expected:,}")


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, dtype, bytes before the values) of a .npy file in C order, which was just opened. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"{name} is of version {version}")
    try:
        with warnings.catch_warnings():
            # about headers as Python 2 wrote them
            warnings.simplefilter("error")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:
        # numpy has Python's own parser read it, which fails in any way it likes
        raise ValueError(f"{name} has a header that can't be read ({type(error).__name__})") from None
    if fortran or dtype.hasobject or not all(type(count) is int and 0 <= count <= sys.maxsize for count in shape):
        raise ValueError(f"{name} holds {dtype} {shape}")
    return shape, dtype, file.tell()


def checksums(path: Path) -> list[int]:
    """The CRC-32 of each 4 MiB of a file, in order. Raises OSError."""
    return list(_checksums(path))


def first_changed_block(path: Path, expected: Sequence[int]) -> int | None:
    """The first 4 MiB of a file whose checksum is not as expected, counted from 0; None if all are. Raises OSError."""
    for index, (found, wanted) in enumerate(zip(_checksums(path), expected, strict=True)):
        if found != wanted:
            return index
    return None


def _checksums(path: Path) -> Iterator[int]:
    with open_regular(path) as file, ThreadPoolExecutor(min(MAX_THREADS, num_cpus())) as pool:

        def checksum(offset: int) -> int:
            # crc32 and pread let go of the interpreter's lock
            return zlib.crc32(systems.read_at(file.fileno(), BLOCK_BYTES, offset))

        yield from pool.map(checksum, range(0, os.fstat(file.fileno()).st_size, BLOCK_BYTES))
