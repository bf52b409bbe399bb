"""Manifests: tables that name image files, their classes and, perhaps, splits (no torch here)."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivace.data.layouts.assemble import Items, assemble, count_of, shorter, some
from vivace.data.layouts.badrows import BadRowError, Unusable, check_rows, with_bad_rows
from vivace.data.layouts.columns import Columns, choose_columns, flag_of
from vivace.data.layouts.finding import Finder, quoted
from vivace.data.layouts.splitnames import SPLIT_NAMES, split_of
from vivace.data.layouts.tables import is_table, open_table
from vivace.data.splits import BadRow, DataSource
from vivace.errors import DataError, nearest

__all__ = ["is_manifest", "open_manifest", "read_manifest"]

# a class number that was stored as a fraction
WHOLE = re.compile(r"-?\d+\.0+")
# how programs write an empty cell as text, as they spell it: "none" may well be a class
EMPTY = frozenset((
    "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaT",
))  # fmt: skip
# tables that have no other way to leave a cell empty than to write nothing, or such a word
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
) -> DataSource:
    """The data source of a manifest; file names are relative to its folder, or absolute unless `inside_only`.

    follow_links: links may lead out of that folder; what is named absolutely may lie anywhere. image_column,
    label_column: names of columns; None: found by their usual names. Raises DataError naming the line for a missing
    column, a wrong value or an unknown split, or if too few rows are left without those of a missing file or class, or
    of one file in several classes: these are in the source's `bad_rows`.
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
    )
    check_rows(items, bad, str(path), require_train=require_train)
    if not items:
        raise DataError(f"the manifest is empty: {path}. Give a line per image with file_name and label.")
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
) -> dict[str, Items]:
    """Split → (file, class) of a manifest, sorted by file; default: the split of rows that name none.

    What was guessed is added to `notes`, what can't be used to `bad`; the rest is as for `open_manifest`.
    """
    reader = _Reader(path, default, Finder(path, inside_only=inside_only, follow_links=follow_links))
    with open_table(path, notes) as (names, first, rows):
        if not names:
            return {}
        columns = choose_columns(names, first, str(path), image_column=image_column, label_column=label_column)
        for line, row in rows(columns.all):
            reader.add(columns, row, line)
    items = reader.items()
    notes += [*columns.notes, *reader.notes()]
    bad += reader.bad()
    return items


class _Reader:
    """Takes in rows, each checked with its line."""

    def __init__(self, path: Path, default: str, finder: Finder) -> None:
        self._path, self._default, self._finder = path, default, finder
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
        """Take in a row. Raises DataError."""
        where = f"{self._path}, line {line}"
        split = self._split(columns, row, where)
        label = ""
        try:
            label = unicodedata.normalize("NFC", self._label(columns, row, where))
            file = self._finder.find(_cell(row, columns.image, where, "missing_file"), where)
        except BadRowError as error:
            name = _text(row.get(columns.image))
            found = Unusable(
                BadRow(split, name, error.reason, (line,), f"{self._path.name}, line {line}: {error}"),
                frozenset([label] if label else []),
            )
            (self._unlabelled if split == "test" and not label else self._bad).append(found)
            return
        before = self._seen.setdefault(file, (line, split, label))
        if before[0] != line:
            self._add_again(file, before, (line, split, label))
            return
        self._rows.setdefault(split, []).append((file, label))

    def _add_again(self, file: str, before: tuple[int, str, str], row: tuple[int, str, str]) -> None:
        """Take in a row whose file was listed before."""
        _, split, label = row
        if file in self._contradictory or label != before[2]:
            self._contradictory.setdefault(file, [before]).append(row)
        elif split == before[1] or (file, split) in self._again:
            self._repeated += 1
        else:
            # in two splits: a leak, which is the audit's to judge
            self._again.add((file, split))
            self._rows.setdefault(split, []).append((file, label))

    def _label(self, columns: Columns, row: Mapping[str, Any], where: str) -> str:
        if columns.label is None:
            label = _hot(columns.one_hot, row, where)
            self._one_hot = self._one_hot or dict.fromkeys((name.strip() for name in columns.one_hot), False)
            self._one_hot[label] = True
            return label
        label = _cell(row, columns.label, where)
        if label in EMPTY:
            self._words.add(label)
            self._num_words += 1
            if self._is_text:
                raise BadRowError(f"{shorter(columns.label, 30)} is {label}: no class", "missing_label")
        try:
            label.encode()
        except UnicodeEncodeError:
            line = where.rpartition(" ")[2]
            raise DataError(
                f"{self._path} is not UTF-8, line {line}: got {ascii(label)[:80]}. Save it as UTF-8."
            ) from None
        return label

    def _split(self, columns: Columns, row: Mapping[str, Any], where: str) -> str:
        split = _split_of(columns, row, where)
        if split is None and columns.split is not None:
            self._without_split += 1
        return split or self._default

    def items(self) -> dict[str, Items]:
        """What was taken in and can be used."""
        if "test" in self._rows:
            # a test split that has no class at all, as of a competition, is none; of another one they are missed
            self._bad += self._unlabelled
            self._unlabelled = []
        out = self._contradictory
        rows = {split: [item for item in found if item[0] not in out] for split, found in self._rows.items()}
        rows = {split: found for split, found in rows.items() if found}
        if all(WHOLE.fullmatch(label) for found in rows.values() for _, label in found):
            # as spreadsheets and pandas write whole numbers once a cell was empty
            rows = {split: [(file, label.partition(".")[0]) for file, label in found] for split, found in rows.items()}
            self._whole = True
        return {split: sorted(found) for split, found in rows.items()}

    def bad(self) -> list[Unusable]:
        """What was taken in and can't be used, by line."""
        found = list(self._bad)
        for file, rows in self._contradictory.items():
            name = os.path.relpath(file, self._path.parent.resolve())
            lines = tuple(line for line, *_ in rows)
            labels = frozenset(label for *_, label in rows)
            message = (
                f"{self._path.name}, lines {' and '.join(map(str, lines[:2]))}: {quoted(name)} is labelled "
                f"{' and '.join(shorter(label, 30) for label in sorted(labels)[:2])}"
            )
            found.append(Unusable(BadRow(rows[0][1], name, "contradiction", lines, message), labels))
        if self._whole:
            found = [Unusable(row, frozenset(name.partition(".")[0] for name in labels)) for row, labels in found]
        return sorted(found, key=lambda unusable: unusable.row.lines)

    def notes(self) -> list[str]:
        """What was left out or guessed."""
        said = self._finder.notes()
        if self._without_split:
            were = "was" if self._without_split == 1 else "were"
            said.append(f"{count_of(self._without_split, 'row')} without a split {were} taken for {self._default}")
        if self._num_words and self._is_text:
            said.append(
                f"{count_of(self._num_words, 'row')} read as without a class, which say "
                f"{' or '.join(sorted(self._words))}: a class of that name needs a table in JSONL, or class folders"
            )
        elif self._num_words:
            said.append(
                f"{' and '.join(sorted(self._words))} in {self._path.name} is text, and was taken for a class "
                f"({count_of(self._num_words, 'row')}): write null where there is none"
            )
        if empty := [name for name, is_there in self._one_hot.items() if not is_there]:
            said.append(f"{count_of(len(empty), 'one-hot column')} without an image passed over: {some(empty)}")
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
    if not hot:
        raise BadRowError("none of the one-hot columns is 1", "missing_label")
    if len(hot) != 1:
        raise DataError(
            f"{where}: one-hot columns found, and {len(hot)} of them are 1 in place of one: "
            f"{', '.join(map(shorter, hot[:3])) or 'none'}. Give one class per image, or a --label-column."
        )
    return hot[0].strip()


def _text(value: Any) -> str:
    # not a number: how an empty cell of a column of numbers is read
    return "" if value is None or value != value else str(value).strip()


def _cell(row: Mapping[str, Any], column: str, where: str, reason: str = "missing_label") -> str:
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = _text(value)
    # a list would be several labels, and a fraction is no class
    if text and not isinstance(value, str | int):
        raise DataError(f"{where}: {column} is no text: got {str(value)[:80]}. Write one name or whole number.")
    if not text:
        raise BadRowError(f"{shorter(column, 30)} is empty", reason)
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
