"""Manifests: CSV, JSONL or parquet with the columns file_name, label and, perhaps, split."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vivace.data.folders import SPLIT_NAMES
from vivace.data.splits import DataSource, Split
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
    labels: set[str] = set()
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
        if not os.path.isfile(file):  # noqa: PTH113
            raise DataError(f"{path}, line {line}: there is no such file: {file_name!r}. Mend the name or the line.")
        label = unicodedata.normalize("NFC", label)
        labels.add(label)
        rows.setdefault(split, []).append((file, label))
    if not rows:
        raise DataError(f"the manifest is empty: {path}. Give a line per image with file_name and label.")
    if require_train and "train" not in rows:
        raise DataError(
            f"the manifest has no training images: {path}, splits {', '.join(sorted(rows))}. Mark some as train."
        )
    classes = tuple(sorted(labels))
    index = {name: number for number, name in enumerate(classes)}
    splits: dict[str, Split] = {}
    for name in ("train", "val", "test"):
        if name in rows:
            items = sorted(rows[name])
            files = tuple(file for file, _ in items)
            splits[name] = Split(
                name=name,
                names=tuple(os.path.relpath(file, root) if inside_only else _short(file, root) for file in files),
                labels=np.asarray([index[label] for _, label in items], dtype=np.int64),
                paths=files,
            )
    _check_classes(splits, classes, path)
    return DataSource(name=path.stem, classes=classes, splits=splits, root=root)


def _short(file: str, root: Path) -> str:
    prefix = os.fspath(root) + os.sep
    return file[len(prefix) :] if file.startswith(prefix) else file


def _check_classes(splits: Mapping[str, Split], classes: tuple[str, ...], path: Path) -> None:
    if "train" not in splits:
        return
    present = set(splits["train"].labels.tolist())
    for number, name in enumerate(classes):
        if number not in present:
            raise DataError(
                f"train and the other splits have different classes in {path}: train lacks {name}. Mend it."
            )


def _cell(row: Mapping[str, Any], column: str, path: Path, line: int) -> str:
    value = row.get(column)
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
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            row = json.loads(text)
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}: not an object: got {text.strip()[:60]!r}. Write one {{…}} a line."
                )
            yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", "a parquet manifest") from None
    table = pyarrow.parquet.read_table(path)
    yield from enumerate(table.to_pylist(), start=1)
