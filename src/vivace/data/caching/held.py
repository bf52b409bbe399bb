"""Copies the images of an object into a folder, so that other processes can read them: its own code may not go there.

They are copied as they are, so they keep their digests. Files are read where they lie.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivace import systems
from vivace.data.caching.files import allocate
from vivace.data.caching.stored import StoredImages
from vivace.data.splits import Arrays, DataSource, Items, Split
from vivace.errors import CacheDamaged, DataError, ImageError

__all__ = ["HeldItems", "hold"]

# images that are copied at once
BLOCK = 256


@dataclass(frozen=True)
class HeldItems:
    """Images one after the other in a file, as `splits.Items` has them; it can be sent to another process."""

    path: Path
    offsets_N: np.ndarray
    """int64, where an image begins in the file."""
    shapes_N3: np.ndarray
    """int32, height, width and channels; of the bytes of an image file their number, 0 and 0."""
    dtypes: tuple[str, ...]
    digests: np.ndarray
    sizes: np.ndarray
    errors: tuple[tuple[str, str] | None, ...]
    """(problem, message) of an image that can't be used."""

    def __len__(self) -> int:
        return len(self.offsets_N)

    def read(self, row: int) -> bytes | np.ndarray:
        """The contents of an image. Raises ImageError, and CacheDamaged if the file is not as it was written."""
        if (error := self.errors[row]) is not None:
            raise ImageError(error[1], problem=error[0])
        shape = self.shapes_N3[row].tolist()
        is_file = shape[1] == 0
        dtype = np.dtype(self.dtypes[row])
        count = shape[0] if is_file else shape[0] * shape[1] * shape[2] * dtype.itemsize
        try:
            with self.path.open("rb") as file:
                data = systems.read_at(file.fileno(), count, int(self.offsets_N[row]))
        except OSError as error_:
            raise CacheDamaged(f"the images can't be read: {self.path} ({error_.strerror}). Start again.") from error_
        if len(data) != count:
            raise CacheDamaged(f"the images were cut off while they were in use: {self.path}. Start again.")
        return data if is_file else np.frombuffer(data, dtype).reshape(shape)

    def select(self, rows: np.ndarray) -> HeldItems:
        """Those at these positions, int64 [n]."""
        return dataclasses.replace(
            self,
            offsets_N=self.offsets_N[rows],
            shapes_N3=self.shapes_N3[rows],
            dtypes=tuple(self.dtypes[row] for row in rows.tolist()),
            digests=self.digests[rows],
            sizes=self.sizes[rows],
            errors=tuple(self.errors[row] for row in rows.tolist()),
        )


def hold(source: DataSource, folder: Path) -> DataSource:
    """The same source, whose images other processes can read: those that are in no files are copied into `folder`.

    Raises DataError if they can't be written there.
    """
    needed = sum(_num_bytes(split) for split in source.splits.values())
    if not needed:
        return source
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise DataError(
                f"the disk is too full for the images of {source.name}, which other processes read: {needed:,} bytes "
                f"are needed, {free:,} are free in {folder}. Free some space, or give the images as files."
            )
        splits = {name: _held(split, folder / name) for name, split in source.splits.items()}
    except OSError as error:
        raise DataError(
            f"the images of {source.name} can't be copied to {folder} ({error.strerror}). Choose another `out`."
        ) from None
    return dataclasses.replace(source, splits=splits)


def _num_bytes(split: Split) -> int:
    """At least so many, for the bytes of files are not known."""
    if split.arrays is not None:
        return int(np.prod(split.arrays.shape, dtype=np.int64)) * split.arrays.dtype.itemsize
    if split.items is None:
        return 0
    return max(1, int(split.items.sizes.astype(np.int64).prod(1).sum()))


def _held(split: Split, stem: Path) -> Split:
    if split.arrays is not None:
        return dataclasses.replace(split, arrays=_held_arrays(split.arrays, stem.with_suffix(".npy")))
    if split.items is not None:
        return dataclasses.replace(split, items=_held_items(split.items, stem.with_suffix(".items")))
    return split


def _held_arrays(arrays: Arrays, path: Path) -> StoredImages:
    count, height, width, channels = arrays.shape
    copy = allocate(path, (count, height, width, channels), arrays.dtype.name)
    for start in range(0, count, BLOCK):
        copy[start : start + BLOCK] = arrays[start : start + BLOCK]
    copy.flush()
    del copy
    return StoredImages(path)


def _held_items(items: Items, path: Path) -> HeldItems:
    offsets = np.zeros(len(items), dtype=np.int64)
    shapes = np.zeros((len(items), 3), dtype=np.int32)
    errors: list[tuple[str, str] | None] = []
    dtypes = ["uint8"] * len(items)
    with path.open("wb") as file:
        for row in range(len(items)):
            offsets[row] = file.tell()
            try:
                data = items.read(row)
            except ImageError as error:
                errors.append((error.problem, str(error)))
                continue
            errors.append(None)
            shapes[row] = (len(data), 0, 0) if isinstance(data, bytes) else data.shape
            dtypes[row] = "uint8" if isinstance(data, bytes) else data.dtype.name
            file.write(data if isinstance(data, bytes) else np.ascontiguousarray(data).data)
    place = Path(os.path.abspath(path))  # noqa: PTH100
    return HeldItems(place, offsets, shapes, tuple(dtypes), items.digests, items.sizes, tuple(errors))
