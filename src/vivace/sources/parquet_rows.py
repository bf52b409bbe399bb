"""Images in parquet files, as bytes in a column: read in bounded parts, never unpacked to disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivace.data.decoding.decode import MAX_BYTES
from vivace.data.layouts.parquet import import_parquet, read_rows, read_schema
from vivace.data.layouts.shards import bytes_of, pixels_column
from vivace.errors import DataError, ImageError
from vivace.sources.items import Item
from vivace.sources.shards import damaged

__all__ = ["parquet_items"]

# columns that an error names
NUM_NAMED = 10
# rows that are in memory at once: so many, or fewer of large images
ROWS_AT_ONCE, BYTES_AT_ONCE = 32, 64 * 2**20


def parquet_items(path: str, done: int = 0, *, name: str | None = None) -> Iterator[Item]:
    """The images in a parquet file, named PATH#ROW, rows numbered from 0; the first `done` have no content.

    name: in place of PATH, for the copy of a file that lies elsewhere.
    The first column of bytes, or of a struct with a field "bytes", holds the images. A file without one, or that can't
    be read on, ends in an item with the error. Raises MissingExtra without pyarrow.
    """
    import_parquet()
    file, row = Path(path), 0
    try:
        facts = os.stat(path)  # noqa: PTH116
        stamp = f"{facts.st_size}:{facts.st_mtime_ns}" if name is None else str(facts.st_size)
        name = name or path
        schema = read_schema(file)
        column = pixels_column(schema, None)
        if column is None:
            yield Item(name, _no_images(name, schema.names), stamp)
            return
        metadata = import_parquet().parquet.read_metadata(path)
        num_done = min(done, metadata.num_rows)
        for row in range(num_done):
            yield Item(f"{name}#{row}", None, stamp)
        for row, cells in enumerate(
            read_rows(file, [column], batch_rows=_rows_at_once(metadata, column), pixels=column, first=num_done),
            start=num_done,
        ):
            yield Item(f"{name}#{row}", _content(cells[column], file, row), stamp)
    except (DataError, OSError) as error:
        yield damaged(name or path, error)


def _no_images(name: str, columns: list[str]) -> ImageError:
    shown = ", ".join(map(repr, columns[:NUM_NAMED])) + ", …" * (len(columns) > NUM_NAMED)
    return ImageError(
        f"no column holds images, as bytes or as a struct with a field bytes: {name} has {shown or 'none'}. If one "
        "holds their paths, give these as a list on stdin, by -.",
        problem="not_an_image",
    )


def _rows_at_once(metadata: Any, column: str) -> int:
    """How many rows of the column have about BYTES_AT_ONCE, in the row group with the largest."""
    most = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(index) for index in range(group.num_columns))
        held = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] == column)
        most = max(most, held // max(1, group.num_rows))
    return max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // most))


def _content(value: Any, path: Path, row: int) -> bytes | ImageError:
    try:
        found = bytes_of(value, path, row)
    except DataError as error:
        return ImageError(str(error), problem="unreadable")
    if len(found) > MAX_BYTES:
        return ImageError(f"the image of row {row} has {len(found):,} bytes. Leave it out.", problem="bomb")
    return found
