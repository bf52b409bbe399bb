"""Manifests: tables that name image files, their classes and, perhaps, splits (no torch here)."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivace.data.assemble import Items, assemble, count_of, shorter
from vivace.data.columns import Columns, choose_columns, flag_of
from vivace.data.formats import EXTENSIONS, REFUSED_EXTENSIONS
from vivace.data.listing import scan
from vivace.data.splitnames import SPLIT_NAMES, is_system, split_of
from vivace.data.splits import DataSource
from vivace.data.tables import is_table, open_table
from vivace.errors import DataError, nearest

__all__ = ["is_manifest", "open_manifest", "read_manifest"]

SURROGATE = re.compile(r"[\ud800-\udfff]")
# a class number that was stored as a fraction
WHOLE = re.compile(r"-?\d+\.0+")
# subfolders in which a file is looked for that is not where the table says
MAX_FOLDERS = 100

is_manifest = is_table


def open_manifest(
    path: Path,
    *,
    require_train: bool = True,
    inside_only: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DataSource:
    """The data source of a manifest; file names are relative to its folder, or absolute unless `inside_only`.

    image_column, label_column: names of columns; None: found by their usual names. Raises DataError naming the line for
    a missing column, value or file, or an unknown split.
    """
    notes: list[str] = []
    items = read_manifest(
        path,
        "train" if require_train else "test",
        notes,
        inside_only=inside_only,
        image_column=image_column,
        label_column=label_column,
    )
    if not items:
        raise DataError(f"the manifest is empty: {path}. Give a line per image with file_name and label.")
    if require_train and "train" not in items:
        raise DataError(
            f"the manifest has no training images: {path}, splits {', '.join(sorted(items))}. Mark some as train."
        )
    return assemble(path.stem, path.parent.resolve(), items, require_train=require_train, notes=notes)


def read_manifest(
    path: Path,
    default: str,
    notes: list[str],
    *,
    inside_only: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> dict[str, Items]:
    """Split → (file, class) of a manifest, sorted by file; default: the split of rows that name none."""
    reader = _Reader(path, default, inside_only)
    with open_table(path) as (names, first, rows):
        if not names:
            return {}
        columns = choose_columns(names, first, str(path), image_column=image_column, label_column=label_column)
        for line, row in rows(columns.all):
            reader.add(columns, row, line)
    notes += [*columns.notes, *reader.notes()]
    return reader.items()


class _Reader:
    """Takes in rows, each checked with its line."""

    def __init__(self, path: Path, default: str, inside_only: bool) -> None:
        self._path, self._default = path, default
        self._finder = _Finder(path, inside_only)
        self._rows: dict[str, Items] = {}
        self._seen: dict[str, tuple[int, str, str]] = {}
        self._repeated = 0
        self._unlabelled: list[int] = []

    def add(self, columns: Columns, row: Mapping[str, Any], line: int) -> None:
        """Take in a row. Raises DataError."""
        where = f"{self._path}, line {line}"
        for column in columns.all:
            if column not in row and column in (columns.image, columns.label):
                raise DataError(f"{where}: there is no column {column!r}, only {', '.join(map(shorter, row))}.")
        split = _split_of(columns, row, self._default, where)
        if split == "test" and columns.label is not None and _text(row.get(columns.label)) == "":
            self._unlabelled.append(line)
            return
        label = self._label(columns, row, where)
        file_name = _cell(row, columns.image, where)
        file = self._finder.find(file_name, where)
        before, *same = self._seen.setdefault(file, (line, split, label))
        if before != line:
            if same != [split, label]:
                raise DataError(f"{where}: {file_name!r} is already listed on line {before}. Remove one of them.")
            self._repeated += 1
            return
        self._rows.setdefault(split, []).append((file, unicodedata.normalize("NFC", label)))

    def _label(self, columns: Columns, row: Mapping[str, Any], where: str) -> str:
        if columns.label is None:
            return _hot(columns.one_hot, row, where)
        label = _cell(row, columns.label, where)
        try:
            label.encode()
        except UnicodeEncodeError:
            line = where.rpartition(" ")[2]
            raise DataError(
                f"{self._path} is not UTF-8, line {line}: got {ascii(label)[:80]}. Save it as UTF-8."
            ) from None
        return label

    def items(self) -> dict[str, Items]:
        """What was taken in. Raises DataError if only some of the test images have a class."""
        if self._unlabelled and "test" in self._rows:
            raise DataError(f"{self._path}, line {self._unlabelled[0]}: the class is empty. Fill it in.")
        rows = self._rows
        if all(WHOLE.fullmatch(label) for found in rows.values() for _, label in found):
            # as spreadsheets and pandas write whole numbers once a cell was empty
            rows = {split: [(file, label.partition(".")[0]) for file, label in found] for split, found in rows.items()}
        return {split: sorted(found) for split, found in rows.items()}

    def notes(self) -> list[str]:
        """What was left out or guessed."""
        said = self._finder.notes()
        if self._repeated:
            said.append(f"{count_of(self._repeated, 'line')} of {self._path.name} left out, which repeat others")
        if self._unlabelled:
            said.append(f"{count_of(len(self._unlabelled), 'test image')} without a class passed over")
        return said


class _Finder:
    """Finds the files that a table names: as they are named, with an extension, or in a subfolder."""

    def __init__(self, path: Path, inside_only: bool) -> None:
        self._root = os.fspath(path.parent.resolve())
        self._inside_only = inside_only
        self._stem, self._table = path.stem, path.name
        self._last: tuple[str, str] | None = None
        self._folders: list[str] | None = None
        self._example = ""

    def find(self, name: str, where: str) -> str:
        """The path of a readable image file. Raises DataError."""
        file = self._joined("", name, where)
        if not os.path.isfile(file):  # noqa: PTH113 (a million rows)
            file = self._elsewhere(name, where)
        if not os.access(file, os.R_OK, effective_ids=True):
            raise DataError(f"{where}: the file can't be read: {name!r}. Check its rights.")
        if os.path.splitext(file)[1].lower() in REFUSED_EXTENSIONS:  # noqa: PTH122
            raise DataError(f"{where}: the format is not allowed: {name!r}. Convert it to JPEG or PNG.")
        return file

    def notes(self) -> list[str]:
        return [self._example] if self._example else []

    def _joined(self, folder: str, name: str, where: str) -> str:
        file = os.path.normpath(os.path.join(self._root, folder, name))  # noqa: PTH118
        inside = file.startswith(self._root + os.sep)
        if not inside and (self._inside_only or not os.path.isabs(name)):  # noqa: PTH117
            raise DataError(f"{where}: the file lies outside the manifest's folder: {name!r}. Move it in.")
        return file

    def _elsewhere(self, name: str, where: str) -> str:
        for folder, extension in self._places(name):
            file = self._joined(folder, name + extension, where)
            if os.path.isfile(file):  # noqa: PTH113
                self._last = (folder, extension)
                if not self._example:
                    short = file.removeprefix(self._root + os.sep)
                    self._example = f"files that are not where the table says were looked for, such as {short}"
                return file
        # bytes that are not UTF-8 are surrogates
        hint = f" {self._table} is not UTF-8 there: save it as UTF-8." if SURROGATE.search(name) else ""
        raise DataError(f"{where}: there is no such file: {name!r}.{hint} Correct the name or the line.")

    def _places(self, name: str) -> list[tuple[str, str]]:
        if self._folders is None:
            found = [entry.name for entry in scan(self._root) if not is_system(entry.name) and entry.is_dir()]
            own = split_of(self._stem)
            # for train.csv in train/ first
            self._folders = ["", *sorted(found, key=lambda folder: (own is None or split_of(folder) != own, folder))]
            self._folders = self._folders[:MAX_FOLDERS]
        known = os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122
        endings = [""] if known else ["", *sorted(EXTENSIONS), *sorted(ending.upper() for ending in EXTENSIONS)]
        first = [self._last] if self._last else []
        return first + [(folder, ending) for folder in self._folders for ending in endings]


def _hot(names: tuple[str, ...], row: Mapping[str, Any], where: str) -> str:
    """The class whose column holds 1."""
    hot = []
    for name in names:
        flag = flag_of(row.get(name))
        if flag is None:
            raise DataError(
                f"{where}: one-hot columns found, and {shorter(name)} is neither 0 nor 1: got {row.get(name)!r}. "
                "Name the column of the classes by --label-column."
            )
        hot += [name] if flag else []
    if len(hot) != 1:
        raise DataError(
            f"{where}: one-hot columns found, and {len(hot)} of them are 1 in place of one: "
            f"{', '.join(map(shorter, hot[:3])) or 'none'}. Give one class per image, or a --label-column."
        )
    return hot[0].strip()


def _text(value: Any) -> str:
    # not a number: how an empty cell of a column of numbers is read
    return "" if value is None or value != value else str(value).strip()


def _cell(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = _text(value)
    # a list would be several labels, and a fraction is no class
    if text and not isinstance(value, str | int):
        raise DataError(f"{where}: {column} is no text: got {str(value)[:80]}. Write one name or whole number.")
    if not text:
        raise DataError(f"{where}: {column} is empty. Fill it in.")
    return text


def _split_of(columns: Columns, row: Mapping[str, Any], default: str, where: str) -> str:
    for column, split in columns.flags:
        if flag_of(row.get(column)):
            return split
    text = "" if columns.split is None else _text(row.get(columns.split))
    if not text:
        return default
    split_name = SPLIT_NAMES.get(text.lower()) or split_of(text)
    if split_name is None:
        raise DataError(
            f"{where}: the split is unknown: got {text!r}.{nearest(text.lower(), SPLIT_NAMES)} "
            "Write train, val or test."
        )
    return split_name
