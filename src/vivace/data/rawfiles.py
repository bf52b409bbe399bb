"""Whether the files of a data set are images that are kept as they are, told by a few of them (no torch here)."""

from __future__ import annotations

import dataclasses

import numpy as np

from vivace.data.decoding.decode import MAX_PIXELS, read_bytes
from vivace.data.decoding.raw import is_raw
from vivace.data.decoding.raw_files import raw_decoding
from vivace.data.decoding.raw_tiff import raw_shape_of
from vivace.data.splits import DataSource, Split
from vivace.data.text import count_of
from vivace.errors import DataError, ImageError

__all__ = ["with_kind_of_files"]

# files that are looked at, evenly spread
NUM_SAMPLED = 5
TIFF = (".tif", ".tiff")


def with_kind_of_files(source: DataSource, pixels: str | None) -> DataSource:
    """The source with the channels and dtype of its files, where they are kept as they are, and a note that says so.

    pixels: as of `Data`; None: only TIFF files whose channels are no colours are kept. Raises DataError if the files
    are not of the dtype that it asks for.
    """
    split = source.splits.get("train") or next(iter(source.splits.values()), None)
    if split is None or not split.paths or pixels == "uint8":
        return source
    found = [kind for path in _some(split, tiffs=pixels is None) if (kind := _kind_of(path, decode=pixels is not None))]
    if not found:
        return source
    channels, dtype = max(set(found), key=found.count)
    if pixels is not None and dtype != pixels:
        raise DataError(
            f"the files are not {pixels}, as `data.pixels` asks: {source.name} has {dtype} with "
            f"{count_of(channels, 'channel')}. Leave it out, or set data.pixels={dtype}."
        )
    if not is_raw(dtype, channels):
        return source
    note = f"the images have {count_of(channels, 'channel')} of {dtype}: they are kept as they are"
    return dataclasses.replace(source, channels=channels, pixels=dtype, notes=(*source.notes, note))  # type: ignore[arg-type]


def _some(split: Split, *, tiffs: bool) -> list[str]:
    """Some of the files, evenly spread; tiffs: of those that are TIFF by their names, all others being pictures."""
    assert split.paths is not None
    rows = np.unique(np.linspace(0, len(split.paths) - 1, NUM_SAMPLED).round().astype(int)).tolist()
    paths = [split.paths[row] for row in rows]
    return [path for path in paths if not tiffs or path.lower().endswith(TIFF)]


def _kind_of(path: str, *, decode: bool) -> tuple[int, str] | None:
    """(channels, dtype) of a file; None for one that can't be read, which the audit reports, or for a picture."""
    try:
        if decode:
            with raw_decoding(path, max_pixels=MAX_PIXELS, side=0) as (_, picture):
                array = np.asarray(picture.pixels)
                return int(array.shape[2]), array.dtype.name
        shape = raw_shape_of(read_bytes(path))
    except ImageError:
        return None
    return None if shape is None else (shape[2], shape[3])
