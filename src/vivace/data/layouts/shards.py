"""Opens parquet files that hold the images, as written by Hugging Face's datasets; unpacks them into the cache once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from vivace.cachedir import default_cache_dir
from vivace.data.decoding.formats import FORMATS, HEAD_BYTES, sniff
from vivace.data.layouts.archives import MAX_RATIO, MEMBER_BYTES, RATIO_FLOOR_BYTES
from vivace.data.layouts.assemble import assemble
from vivace.data.layouts.badrows import Unusable, check_rows, with_bad_rows
from vivace.data.layouts.columns import Columns, choose_columns, find_column
from vivace.data.layouts.manifests import read_manifest
from vivace.data.layouts.parquet import MAX_LIST, import_parquet, read_rows, read_schema
from vivace.data.layouts.reading import look_at, reading_of
from vivace.data.layouts.tables import MAX_CELL, class_names_of
from vivace.data.layouts.unpacked import identity, unpacked_once
from vivace.data.place import Data
from vivace.data.splits import DataSource
from vivace.data.text import first_few
from vivace.errors import ArchiveError, DataError

__all__ = ["bytes_of", "holds_pixels", "open_shards", "pixels_column"]

# photos of some MB each
ROWS_AT_ONCE = 32
LABELS = "labels.jsonl"


def holds_pixels(path: Path, image_column: str | None = None) -> bool:
    """Whether a parquet file has a column of encoded images: bytes, or a struct with a field "bytes".

    image_column: only this column counts; None: any.
    """
    if path.suffix.lower() != ".parquet":
        return False
    return pixels_column(read_schema(path), image_column) is not None


def open_shards(
    shards: Mapping[str, Sequence[Path]],
    name: str,
    data: Data,
    cache_dir: Path | None,
    *,
    require_train: bool = True,
) -> DataSource:
    """The data source of parquet files that hold images.

    shards: split → files. data: names of the columns. Raises ArchiveError for files that unpack to far more than their
    size, DataError for files without images or classes.
    """
    facts = [f"{split}\0{identity(path.resolve())}" for split, paths in sorted(shards.items()) for path in paths]
    columns = [str(data.label_column), *([] if data.image_column is None else [f"\0{data.image_column}"])]
    key = hashlib.sha256("\n".join([*columns, *facts]).encode("utf-8", "surrogateescape")).hexdigest()
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)[:60]
    archives = (cache_dir or default_cache_dir()) / "archives"
    try:
        folder = unpacked_once(archives, plain, key, lambda temporary: _unpack_all(shards, temporary, data))
    except OSError as error:
        raise ArchiveError(
            f"the images of {name} can't be unpacked into the cache: {archives} ({error.strerror or error}). Set "
            "$VIVACE_CACHE or `cache_dir` to a writable folder."
        ) from None
    bad: list[Unusable] = []
    reading = reading_of(look_at([folder / LABELS], image_column=None, label_column=None), data.multi_label)
    items = read_manifest(folder / LABELS, "train", [], bad, inside_only=True, reading=reading)
    check_rows(items, bad, name, require_train=require_train)
    if require_train and "train" not in items:
        raise DataError(f"{name} has no training images, only {', '.join(sorted(items))}. Add a shard named train.")
    source = assemble(name, folder.resolve(), items, require_train=require_train, notes=reading.notes)
    return with_bad_rows(source, bad)


def _unpack_all(shards: Mapping[str, Sequence[Path]], folder: Path, data: Data) -> None:
    limit = max(RATIO_FLOOR_BYTES, MAX_RATIO * sum(path.stat().st_size for paths in shards.values() for path in paths))
    budget = _ByteBudget(min(limit, shutil.disk_usage(folder).free))
    with (folder / LABELS).open("w") as labels:
        for split, paths in shards.items():
            (folder / split).mkdir()
            for number, path in enumerate(paths):
                _unpack(path, folder, f"{split}/{number:04d}", split, labels, budget, data)


class _ByteBudget:
    """How many more bytes may be written."""

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes

    def take(self, num_bytes: int, path: Path) -> None:
        """Count bytes that are about to be written. Raises ArchiveError if they exceed the budget."""
        self._left -= num_bytes
        if self._left < 0:
            raise ArchiveError(
                f"too many bytes: {path} unpacks to over {MAX_RATIO} times its size, or to more than is free on the "
                "disk. Do not use it, or free some space."
            )


def _unpack(path: Path, folder: Path, stem: str, split: str, labels: IO[str], budget: _ByteBudget, data: Data) -> None:
    schema = read_schema(path)
    pixels = pixels_column(schema, data.image_column)
    if pixels is None and data.image_column is not None:
        raise DataError(
            f"{path}: there is no column {data.image_column!r} of images; images are in "
            f"{first_few(_pixels_columns(schema)) or 'none'}. Name a column of images by `image_column`."
        )
    if pixels is None:
        raise DataError(
            f"there are no images in {path}: no column holds bytes, or a struct with bytes. Remove the file."
        )
    columns = _columns(schema, pixels, path, data.label_column)
    names = class_names_of(schema).get(columns.label or "")
    assert columns.label is not None
    rows = read_rows(path, [pixels, columns.label], batch_rows=ROWS_AT_ONCE, pixels=pixels)
    for row_number, row in enumerate(rows, start=1):
        encoded = bytes_of(row[pixels], path, row_number)
        # an empty file takes space too
        budget.take(max(len(encoded), MEMBER_BYTES), path)
        kind = sniff(encoded[:HEAD_BYTES])
        file_name = f"{stem}-{row_number:08d}{FORMATS[kind][0] if kind else '.img'}"
        (folder / file_name).write_bytes(encoded)
        label = _label_of(row[columns.label], names)
        if isinstance(label, str) and len(label) > MAX_CELL:
            raise DataError(f"{path}, row {row_number}: the class is too long: {len(label):,} characters. Shorten it.")
        labels.write(json.dumps({"file_name": file_name, "label": label, "split": split}) + "\n")


def _columns(schema: Any, pixels: str, path: Path, label_column: str | None) -> Columns:
    known = class_names_of(schema)
    if label_column is None and len(known) == 1:
        (label_column,) = known
    columns = choose_columns(schema.names, {}, str(path), image_column=pixels, label_column=label_column)
    if columns.label is None:
        raise DataError(f"{path}: no column holds the classes. Name it by `label_column`.")
    return columns


def bytes_of(value: Any, path: Path, row: int) -> bytes:
    encoded = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(encoded, bytes):
        raise DataError(f"{path}, row {row}: the image has no bytes, only a path or nothing. Embed the images.")
    return encoded


def _label_of(value: Any, names: Sequence[str] | None) -> Any:
    if names and isinstance(value, int | float) and value == int(value) and 0 <= value < len(names):
        return names[int(value)]
    if isinstance(value, list) and len(value) <= MAX_LIST:
        return [_label_of(item, names) for item in value]
    return value if isinstance(value, str | int | float) else None if value is None else str(value)[:200]


def pixels_column(schema: Any, wanted: str | None) -> str | None:
    """The column `wanted` if it holds images, or the first that does if `wanted` is None."""
    names = _pixels_columns(schema)
    if wanted is not None:
        found = find_column(schema.names, wanted)
        return found if found in names else None
    return names[0] if names else None


def _pixels_columns(schema: Any) -> list[str]:
    types, names = import_parquet().types, []
    for field in schema:
        kind = field.type
        inner = kind.field("bytes").type if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        if types.is_binary(inner) or types.is_large_binary(inner):
            names.append(str(field.name))
    return names
