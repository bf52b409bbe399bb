"""Images in a file, read row by row when they are indexed, with checksums.

This is not a memory map: if a mapped file is truncated or the disk fails, SIGBUS kills the process without a message. A
failed read raises an error instead, and costs only 1 to 2 µs more per image.
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
from vivace.data.decoding.raw import WHITE
from vivace.errors import CacheDamaged
from vivace.files import open_regular
from vivace.hardware import num_cpus

__all__ = ["Pixels", "StoredImages", "checksums", "first_changed_block", "read_column"]

# bytes of a file per checksum: CRC-32, which is over twice as fast as blake2b
BLOCK_BYTES = 4 * 2**20
# of pixels, in the byte order of this machine
DTYPES = tuple(map(np.dtype, WHITE))
# more threads are limited by memory bandwidth
MAX_THREADS = 4


class Pixels(Protocol):
    """[N, H, W, C], in memory or in a file; indexing along the first axis gives numpy arrays."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8; uint16 or float32 of images that are kept as they are."""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...

    def __array__(self) -> np.ndarray: ...


class StoredImages:
    """[N, H, W, C] of one of DTYPES in a .npy file, read-only; indexed like an array, but only along the first axis.

    Indexing gives copies, and raises CacheDamaged if the file was truncated or can't be read any more. The file stays
    open: another one that replaces it under the same name is ignored.
    """

    ndim = 4

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError if it is not such a file, or if its length does not match its header."""
        self._path = path.absolute()
        with open_regular(path) as file:
            self.shape, self.dtype, self._offset = _header(file, path.name)
            self._descriptor = os.dup(file.fileno())
        # a plain descriptor gives no ResourceWarning; and it is not closed at exit, when threads may still read from it
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        if self.dtype not in DTYPES or len(self.shape) != self.ndim:
            raise ValueError(f"{path.name} holds {self.dtype} {self.shape}")
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        _check_size(self._descriptor, self._offset + math.prod(self.shape) * self.dtype.itemsize, path.name)

    @property
    def nbytes(self) -> int:
        return len(self) * self._row_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as a reference: another process opens the same file again."""
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
        # numpy makes an empty list a float array
        return self._read(positions if positions.size else np.empty(0, dtype=np.int64))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("images in a file can't be converted to an array without a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def _read(self, positions_n: np.ndarray) -> np.ndarray:
        if positions_n.size and not -len(self) <= positions_n.min() <= positions_n.max() < len(self):
            raise IndexError(f"there are {len(self):,} images: got {positions_n.min()} to {positions_n.max()}")
        positions_n = positions_n % len(self) if positions_n.size else positions_n
        out = np.empty((len(positions_n), *self.shape[1:]), dtype=self.dtype)
        if out.size:
            flat = memoryview(out).cast("B")  # type: ignore[arg-type]
            # adjacent rows are read by one call
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
    raise _damaged(path, "it was replaced by another file")


def _damaged(path: Path, reason: str) -> CacheDamaged:
    return CacheDamaged(
        f"the cache was damaged while it was in use: {path} ({reason}). Start again (a training with "
        "`resume=True`): the images are then read again."
    )


def read_column(path: Path, dtype: Any, length: int) -> np.ndarray:
    """The array [length] of `dtype` in a .npy file. Raises OSError or ValueError if it holds anything else."""
    with open_regular(path) as file:
        shape, found, offset = _header(file, path.name)
        if found != dtype or shape != (length,):
            raise ValueError(f"{path.name} holds {found} {shape}, expected {np.dtype(dtype)} {(length,)}")
        # checked before memory is allocated
        _check_size(file.fileno(), offset + length * found.itemsize, path.name)
        return np.frombuffer(bytearray(file.read(length * found.itemsize)), dtype=found)


def _check_size(descriptor: int, expected: int, name: str) -> None:
    size = os.fstat(descriptor).st_size
    if size != expected:
        raise ValueError(f"{name} has {size:,} bytes, expected {expected:,}")


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, dtype, offset of the values) of a newly opened .npy file in C order. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"{name} has version {version}")
    try:
        with warnings.catch_warnings():
            # numpy only warns of headers written by Python 2
            warnings.simplefilter("error")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:
        # numpy evaluates the header by Python's parser, which may raise anything
        raise ValueError(f"{name} has a header that can't be read ({type(error).__name__})") from None
    if fortran or dtype.hasobject or not all(type(count) is int and 0 <= count <= sys.maxsize for count in shape):
        raise ValueError(f"{name} holds {dtype} {shape}")
    return shape, dtype, file.tell()


def checksums(path: Path) -> list[int]:
    """The CRC-32 of each block of 4 MiB of a file, in order. Raises OSError."""
    return list(_checksums(path))


def first_changed_block(path: Path, expected: Sequence[int]) -> int | None:
    """The index of the first block of 4 MiB whose checksum differs from the expected one; None if all are equal.

    Raises OSError.
    """
    for index, (found, wanted) in enumerate(zip(_checksums(path), expected, strict=True)):
        if found != wanted:
            return index
    return None


def _checksums(path: Path) -> Iterator[int]:
    with open_regular(path) as file, ThreadPoolExecutor(min(MAX_THREADS, num_cpus())) as pool:

        def checksum(offset: int) -> int:
            # crc32 and pread release the GIL
            return zlib.crc32(systems.read_at(file.fileno(), BLOCK_BYTES, offset))

        yield from pool.map(checksum, range(0, os.fstat(file.fileno()).st_size, BLOCK_BYTES))
