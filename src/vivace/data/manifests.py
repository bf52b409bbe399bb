"""Manifests: CSV, JSONL or parquet with the columns file_name, label and, perhaps, split."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vivace.data.assemble import assemble
from vivace.data.decode import REFUSED_EXTENSIONS
from vivace.data.splitnames import SPLIT_NAMES
from vivace.data.splits import DataSource
from vivace.errors import DataError, MissingExtra, nearest

__all__ = ["is_manifest", "open_manifest"]

REQUIRED = ("file_name", "label")


def is_manifest(path: Path) -> bool:
    """Whether the extension is that of a manifest."""
    return path.suffix.lower() in (".csv", ".jsonl", ".parquet")


def open_manifest(path: Path, *, require_train: bool = True, inside_only: bool = False) -> DataSource:
    """The data source of a manifest; file names are relative to its folder, or absolute unless `inside_only`.

    Raises DataError naming the line for a missing column, value or file, or an unknown split.
    """
    root = path.parent.resolve()
    rows: dict[str, list[tuple[str, str]]] = {}
    seen: dict[str, int] = {}
    default = "train" if require_train else "test"
    for line, row in _rows(path):
        label, file_name = _cell(row, "label", path, line), _cell(row, "file_name", path, line)
        split = _split_name(row.get("split"), default, path, line)
        file = os.path.normpath(os.path.join(root, file_name))  # noqa: PTH118 (a million rows)
        inside = file.startswith(os.fspath(root) + os.sep)
        if not inside and (inside_only or not os.path.isabs(file_name)):  # noqa: PTH117
            raise DataError(
                f"{path}, line {line}: the file lies outside the manifest's folder: {file_name!r}. Move it in."
            )
        _check_file(file, f"{path}, line {line}", file_name)
        if (before := seen.setdefault(file, line)) != line:
            raise DataError(f"{path}, line {line}: {file_name!r} stands in line {before} already. Remove one of them.")
        rows.setdefault(split, []).append((file, unicodedata.normalize("NFC", label)))
    if not rows:
        raise DataError(f"the manifest is empty: {path}. Give a line per image with file_name and label.")
    if require_train and "train" not in rows:
        raise DataError(
            f"the manifest has no training images: {path}, splits {', '.join(sorted(rows))}. Mark some as train."
        )
    items = {split: sorted(found) for split, found in rows.items()}
    return assemble(path.stem, root, items, require_train=require_train)


def _check_file(file: str, where: str, file_name: str) -> None:
    if not os.path.isfile(file):  # noqa: PTH113
        raise DataError(f"{where}: there is no such file: {file_name!r}. Mend the name or the line.")
    if not os.access(file, os.R_OK, effective_ids=True):
        raise DataError(f"{where}: the file can't be read: {file_name!r}. Check its rights.")
    if os.path.splitext(file)[1].lower() in REFUSED_EXTENSIONS:  # noqa: PTH122
        raise DataError(f"{where}: the format is not allowed: {file_name!r}. Convert it to JPEG or PNG.")


def _cell(row: Mapping[str, Any], column: str, path: Path, line: int) -> str:
    value = row.get(column)
    # a list would be several labels, and a fraction is no class
    if value is not None and not isinstance(value, str | int):
        raise DataError(f"{path}, line {line}: {column} is no text: got {value!r}. Write one name or whole number.")
    text = "" if value is None else str(value).strip()
    if not text:
        raise DataError(f"{path}, line {line}: {column} is empty. Fill it in.")
    return text


def _split_name(value: Any, default: str, path: Path, line: int) -> str:
    text = "" if value is None else str(value).strip().lower()
    if not text:
        return default
    if text not in SPLIT_NAMES:
        raise DataError(
            f"{path}, line {line}: the split is unknown: got {value!r}.{nearest(text, SPLIT_NAMES)} "
            "Write train, val or test."
        )
    return SPLIT_NAMES[text]


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, row) of a manifest, after its columns were checked."""
    kind = path.suffix.lower()
    try:
        reader = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}[kind](path)
        for line, row in reader:
            for column in REQUIRED:
                if column not in row:
                    known = [str(key) for key in row]
                    raise DataError(
                        f"{path}, line {line}: there is no column {column!r}, only {', '.join(known)}."
                        f"{nearest(column, known)} Name the columns file_name, label and, if you like, split."
                    )
            yield line, row
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(f"the manifest can't be read: {path} ({error}). Give UTF-8 text, or parquet.") from None


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # utf-8-sig: spreadsheets put a byte-order mark before the first column's name
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, row


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}: not a JSON object: got {text.strip()[:60]!r}. Write one {{…}} a line."
                )
            yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "a parquet manifest") from None
    with pyarrow.parquet.ParquetFile(path) as file:
        # a parquet file often holds the pixels as well: read what is asked for only
        names = file.schema_arrow.names
        columns = [name for name in (*REQUIRED, "split") if name in names]
        rows = file.read(columns=columns if set(REQUIRED) <= set(names) else names).to_pylist()
    yield from enumerate(rows, start=1)
