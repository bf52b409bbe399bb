"""Manifests: tables that name image files, their classes and, perhaps, splits (no torch here)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivace.data.assemble import Items, assemble, count_of, shorter
from vivace.data.columns import Columns, choose_columns, flag_of
from vivace.data.finding import Finder
from vivace.data.splitnames import SPLIT_NAMES, split_of
from vivace.data.splits import DataSource
from vivace.data.tables import is_table, open_table
from vivace.errors import DataError, nearest

__all__ = ["is_manifest", "open_manifest", "read_manifest"]

# a class number that was stored as a fraction
WHOLE = re.compile(r"-?\d+\.0+")

is_manifest = is_table


def open_manifest(
    path: Path,
    *,
    require_train: bool = True,
    inside_only: bool = False,
    follow_links: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DataSource:
    """The data source of a manifest; file names are relative to its folder, or absolute unless `inside_only`.

    follow_links: links may lead out of that folder; what is named absolutely may lie anywhere. image_column,
    label_column: names of columns; None: found by their usual names. Raises DataError naming the line for a missing
    column, value or file, or an unknown split.
    """
    notes: list[str] = []
    items = read_manifest(
        path,
        "train" if require_train else "test",
        notes,
        inside_only=inside_only,
        follow_links=follow_links,
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
    follow_links: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> dict[str, Items]:
    """Split → (file, class) of a manifest, sorted by file; default: the split of rows that name none.

    The rest is as for `open_manifest`.
    """
    reader = _Reader(path, default, Finder(path, inside_only=inside_only, follow_links=follow_links))
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

    def __init__(self, path: Path, default: str, finder: Finder) -> None:
        self._path, self._default, self._finder = path, default, finder
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
