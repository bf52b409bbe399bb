"""Manifests: tables that list image files with their classes and, optionally, splits (no torch here)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vivace.data.labelsets import names_in
from vivace.data.layouts.assemble import Items, assemble
from vivace.data.layouts.badrows import BadRowError, Unusable, check_rows, with_bad_rows
from vivace.data.layouts.columns import Columns, choose_columns, flag_of
from vivace.data.layouts.finding import Finder, quoted
from vivace.data.layouts.reading import ONE_CLASS, Reading, hot_of, look_at, normalized, reading_of, set_in
from vivace.data.layouts.splitnames import SPLIT_NAMES, split_of
from vivace.data.layouts.tables import is_table, open_table
from vivace.data.splits import BadRow, DataSource
from vivace.data.text import count_of, first_few, shortened
from vivace.errors import DataError, nearest

__all__ = ["RowReader", "is_manifest", "open_manifest", "read_manifest"]

# a class number that was stored as a float
WHOLE = re.compile(r"-?\d+\.0+")
# how programs write an empty cell as text. Case matters: "none" may well be a class
EMPTY = frozenset((
    "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaT",
))  # fmt: skip
# formats without a null: an empty cell is an empty text or such a word
TEXT = (".csv", ".tsv")

is_manifest = is_table


def open_manifest(
    path: Path,
    *,
    require_train: bool = True,
    inside_only: bool = False,
    follow_links: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    multi_label: bool | None = None,
) -> DataSource:
    """The data source of a manifest. File names are relative to its folder, or absolute unless `inside_only`.

    follow_links: links may lead out of that folder; absolute names may lead anywhere in any case.
    image_column, label_column: names of columns. None: found by their usual names. multi_label: whether an image has a
    set of labels. None: as `reading_of` finds.

    Rows with a missing file, a missing class or contradictory classes are left out and listed in the source's
    `bad_rows`. Raises DataError, with the line, for a missing column, an invalid value or an unknown split, and if too
    few rows remain.
    """
    notes: list[str] = []
    bad: list[Unusable] = []
    items = read_manifest(
        path,
        "train",
        notes,
        bad,
        inside_only=inside_only,
        follow_links=follow_links,
        image_column=image_column,
        label_column=label_column,
        multi_label=multi_label,
    )
    check_rows(items, bad, str(path), require_train=require_train)
    if not items:
        raise DataError(f"the manifest is empty: {path}. Write one line per image, with file_name and label.")
    if require_train and "train" not in items:
        raise DataError(
            f"the manifest has no training images: {path}, splits {', '.join(sorted(items))}. Mark some as train."
        )
    source = assemble(path.stem, path.parent.resolve(), items, require_train=require_train, notes=notes)
    return with_bad_rows(source, bad)


def read_manifest(
    path: Path,
    default: str,
    notes: list[str],
    bad: list[Unusable],
    *,
    inside_only: bool = False,
    follow_links: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    multi_label: bool | None = None,
    reading: Reading | None = None,
) -> dict[str, Items]:
    """Split → (file, class) pairs of a manifest, sorted by file; in place of a class a LabelSet, if it has several.

    default: the split of rows that name none. Guesses are added to `notes`, unusable rows to `bad`. reading: how its
    labels are read; None: as its own cells tell. The other arguments are those of `open_manifest`.
    """
    if reading is None:
        reading = reading_of(look_at([path], image_column=image_column, label_column=label_column), multi_label)
        notes += reading.notes
    finder = Finder(path, inside_only=inside_only, follow_links=follow_links)
    reader = RowReader(path, default, finder.find, reading=reading)
    with open_table(path, notes) as (names, first, rows):
        if not names:
            return {}
        columns = choose_columns(names, first, str(path), image_column=image_column, label_column=label_column)
        for line, row in rows(columns.all):
            reader.add(columns, row, line)
    items = reader.items()
    notes += [*columns.notes, *finder.notes(), *reader.notes()]
    bad += reader.bad()
    return items


class RowReader:
    """Collects the rows of a table and checks each one.

    path: of the table, for messages. default: the split of rows that name none. find: (cell, where) → the image's file;
    raises BadRowError. unit: what a row's number counts. reading: how labels are read.
    """

    def __init__(
        self,
        path: Path,
        default: str,
        find: Callable[[str, str], str],
        *,
        unit: str = "line",
        reading: Reading = ONE_CLASS,
    ) -> None:
        self._reading = reading
        self._path, self._default, self._find, self._unit = path, default, find, unit
        self._rows: dict[str, Items] = {}
        self._seen: dict[str, tuple[int, str, str]] = {}
        self._again: set[tuple[str, str]] = set()
        self._contradictory: dict[str, list[tuple[int, str, str]]] = {}
        self._repeated = 0
        self._unlabelled: list[Unusable] = []
        self._bad: list[Unusable] = []
        self._whole = False
        self._is_text = path.suffix.lower() in TEXT
        self._without_split = 0
        self._words: set[str] = set()
        self._num_words = 0
        self._one_hot: dict[str, bool] = {}

    def add(self, columns: Columns, row: Mapping[str, Any], line: int) -> None:
        """Add a row, which is at `line` of the table. Raises DataError."""
        where = f"{self._path}, {self._unit} {line}"
        split = self._split(columns, row, where)
        label = ""
        try:
            label = normalized(self._label(columns, row, where))
            file = self._find(_cell(row, columns.image, where, "missing_file"), where)
        except BadRowError as error:
            name = _text(row.get(columns.image))
            found = Unusable(
                BadRow(split, name, error.reason, (line,), f"{self._path.name}, {self._unit} {line}: {error}"),
                frozenset(names_in(label) if label else []),
            )
            (self._unlabelled if split == "test" and not label else self._bad).append(found)
            return
        before = self._seen.setdefault(file, (line, split, label))
        if before[0] != line:
            self._add_again(file, before, (line, split, label))
            return
        self._rows.setdefault(split, []).append((file, label))

    def _add_again(self, file: str, before: tuple[int, str, str], row: tuple[int, str, str]) -> None:
        """Add a row whose file was already listed."""
        _, split, label = row
        if file in self._contradictory or label != before[2]:
            self._contradictory.setdefault(file, [before]).append(row)
        elif split == before[1] or (file, split) in self._again:
            self._repeated += 1
        else:
            # in two splits: a leak, which the audit reports
            self._again.add((file, split))
            self._rows.setdefault(split, []).append((file, label))

    def _label(self, columns: Columns, row: Mapping[str, Any], where: str) -> str:
        if columns.label is None:
            label = hot_of(columns.one_hot, row, where, several=self._reading.multi_label)
            self._one_hot = self._one_hot or dict.fromkeys((name.strip() for name in columns.one_hot), False)
            self._one_hot.update(dict.fromkeys(names_in(label), True))
            return label
        label = set_in(self._reading, row, columns.label, where) or _cell(row, columns.label, where)
        if label in EMPTY:
            self._words.add(label)
            self._num_words += 1
            if self._is_text:
                raise BadRowError(f"{shortened(columns.label, 30)} is {label}, which is no class", "missing_label")
        try:
            label.encode()
        except UnicodeEncodeError:
            line = where.rpartition(" ")[2]
            raise DataError(
                f"{self._path} is not UTF-8, {self._unit} {line}: got {ascii(label)[:80]}. Save it as UTF-8."
            ) from None
        return label

    def _split(self, columns: Columns, row: Mapping[str, Any], where: str) -> str:
        split = _split_of(columns, row, where)
        if split is None and columns.split is not None:
            self._without_split += 1
        return split or self._default

    def items(self) -> dict[str, Items]:
        """Split → (file, class) of the usable rows."""
        if "test" in self._rows:
            # competitions publish test images without classes, which are skipped; but if the other test images have a
            # class, these rows are faulty
            self._bad += self._unlabelled
            self._unlabelled = []
        out = self._contradictory
        rows = {split: [item for item in found if item[0] not in out] for split, found in self._rows.items()}
        rows = {split: found for split, found in rows.items() if found}
        if not self._reading.multi_label and all(
            WHOLE.fullmatch(label) for found in rows.values() for _, label in found
        ):
            # spreadsheets and pandas write integers as 1.0 if a cell of the column is empty
            rows = {split: [(file, label.partition(".")[0]) for file, label in found] for split, found in rows.items()}
            self._whole = True
        return {split: sorted(found) for split, found in rows.items()}

    def bad(self) -> list[Unusable]:
        """The unusable rows, sorted by line."""
        found = list(self._bad)
        for file, rows in self._contradictory.items():
            name = os.path.relpath(file, self._path.parent.resolve())
            lines = tuple(line for line, *_ in rows)
            labels = frozenset(label for *_, label in rows)
            message = (
                f"{self._path.name}, {self._unit}s {' and '.join(map(str, lines[:2]))}: {quoted(name)} is labelled "
                f"{' and '.join(shortened(label, 30) for label in sorted(labels)[:2])}"
            )
            classes = frozenset(name for label in labels for name in names_in(label))
            found.append(Unusable(BadRow(rows[0][1], name, "contradiction", lines, message), classes))
        if self._whole:
            found = [Unusable(row, frozenset(name.partition(".")[0] for name in labels)) for row, labels in found]
        return sorted(found, key=lambda unusable: unusable.row.lines)

    def notes(self) -> list[str]:
        """Notes on what was left out or guessed."""
        notes: list[str] = []
        if self._without_split:
            were = "was" if self._without_split == 1 else "were"
            notes.append(f"{count_of(self._without_split, 'row')} without a split {were} put into {self._default}")
        if self._num_words and self._is_text:
            notes.append(
                f"left out {count_of(self._num_words, 'row')} whose class is {' or '.join(sorted(self._words))}, which "
                "is read as empty: if it is the name of a class, use JSONL or class folders"
            )
        elif self._num_words:
            notes.append(
                f"{' and '.join(sorted(self._words))} in {self._path.name} is text, so it was read as the name of a "
                f"class ({count_of(self._num_words, 'row')}): write null for a missing class"
            )
        if empty := [name for name, is_there in self._one_hot.items() if not is_there]:
            notes.append(f"skipped {count_of(len(empty), 'one-hot column')} without an image: {first_few(empty)}")
        if self._repeated:
            notes.append(f"left out {count_of(self._repeated, f'duplicate {self._unit}')} of {self._path.name}")
        if self._unlabelled:
            notes.append(f"skipped {count_of(len(self._unlabelled), 'test image')} without a class")
        return notes


def _text(value: Any) -> str:
    # value != value: NaN is how an empty cell in a column of numbers is read
    return "" if value is None or value != value else str(value).strip()


def _cell(row: Mapping[str, Any], column: str, where: str, reason: str = "missing_label") -> str:
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = _text(value)
    # a list would be several labels, and a fraction can't be a class
    if text and not isinstance(value, str | int):
        raise DataError(f"{where}: {column} is not text: got {str(value)[:80]}. Write one name or integer.")
    if not text:
        raise BadRowError(f"{shortened(column, 30)} is empty", reason)
    return text


def _split_of(columns: Columns, row: Mapping[str, Any], where: str) -> str | None:
    """The split that a row names; None if it names none."""
    for column, split in columns.flags:
        if flag_of(row.get(column)):
            return split
    text = "" if columns.split is None else _text(row.get(columns.split))
    if not text or text in EMPTY:
        return None
    split_name = SPLIT_NAMES.get(text.lower()) or split_of(text)
    if split_name is None:
        raise DataError(
            f"{where}: the split is unknown: got {text!r}.{nearest(text.lower(), SPLIT_NAMES)} "
            "Write train, val or test."
        )
    return split_name
