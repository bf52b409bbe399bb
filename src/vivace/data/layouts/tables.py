"""Reads rows of CSV, JSONL and parquet files with their line numbers, whatever program wrote them (no torch here)."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from vivace.data.decoding.formats import EXTENSIONS
from vivace.data.layouts.columns import IMAGE_NAMES, LABEL_NAMES, MAX_COLUMNS, check_width, names_images, numbered
from vivace.data.layouts.parquet import import_parquet, read_rows, read_schema
from vivace.data.text import count_of, first_few, shortened
from vivace.errors import DataError, VivaceError

__all__ = ["class_names_of", "is_table", "names_any", "open_table"]

Rows = Iterator[tuple[int, Mapping[str, Any]]]
DELIMITERS = ",;\t|"
# a first line that tells Excel the delimiter
SEP = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
# characters in a cell; the limit of Python's csv
MAX_CELL = 131_072
KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
# rows that are read to see whether a table names certain files
NUM_SAMPLED_ROWS = 100


def is_table(path: Path) -> bool:
    """Whether the extension is that of a table."""
    return path.suffix.lower() in KINDS


@contextmanager
def open_table(
    path: Path, notes: list[str]
) -> Iterator[tuple[list[str], Mapping[str, Any], Callable[[Sequence[str]], Rows]]]:
    """(column names, first row, rows(columns)) of a table; all empty if it has no rows.

    rows(columns) yields (line, row). Of a parquet file it reads only the given columns, and the first row is a
    stand-in: 0 for numbers, "?" for other values. Bytes of a CSV that are not UTF-8 become surrogates. Guesses about
    the header are added to `notes`. Raises DataError for a file that can't be read, and for a CSV without a header
    line unless its columns are file and class.
    """
    try:
        if path.suffix.lower() == ".parquet":
            yield _parquet(path)
            return
        reader = _jsonl_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path, notes)
        # close the file here, not when the garbage collector gets to the generator
        with closing(reader):
            first = next(reader, None)
            if first is None:
                yield [], {}, lambda columns: iter(())
            else:
                yield list(first[1]), first[1], lambda columns: itertools.chain([first], reader)
    except (OSError, UnicodeError, csv.Error, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the manifest can't be read: {path} ({reason}). Give UTF-8 text, or parquet.") from None


def names_any(path: Path, files: Collection[str]) -> bool:
    """Whether a cell in the table's first rows ends in one of these file names; False if it can't be read."""
    try:
        with open_table(path, []) as (columns, _, rows):
            first = itertools.islice(rows(columns), NUM_SAMPLED_ROWS)
            return any(
                str(cell).replace("\\", "/").rpartition("/")[2] in files for _, row in first for cell in row.values()
            )
    except VivaceError:
        return False


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    # utf-8-sig: spreadsheets put a byte-order mark before the first column's name
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _csv_rows(path: Path, notes: list[str]) -> Generator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding=_encoding(path), newline="", errors="surrogateescape") as file:
        header, before, comments = _header(file)
        if comments:
            notes.append(f"skipped {count_of(comments, 'comment line')} above the header of {path.name}")
        # the delimiter that occurs most often in the header
        delimiter = max(DELIMITERS, key=header.count)
        if stated := SEP.fullmatch(header):
            file.readline()
            delimiter, before = stated[1], before + 1
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        names = [name.strip() for name in next(reader, [])]
        check_width(len(names), f"{path}, line {before + reader.line_num}")
        names = numbered(names)
        if len(names) == 1 and header.startswith('"') and any(mark in names[0] for mark in DELIMITERS):
            raise DataError(
                f"{path}: each row is quoted as a whole, which makes it one value: got {header.strip()[:60]}. "
                "Remove the quotes around the rows, or export the table again."
            )
        if names and header.startswith("#"):
            names[0] = names[0].lstrip("# ")
        first = []
        if _is_data(names, path.parent):
            if len(names) != 2 or not _is_file(names[0], path.parent):
                raise DataError(
                    f"no header line: the first row of {path} names an image: got {first_few(names, 3)}. Insert a "
                    "line with the column names, such as file_name,label."
                )
            notes.append(f"{path.name} has no header line: its columns were taken for file_name and label")
            first, names = [names], ["file_name", "label"]
        for cells in itertools.chain(first, reader):
            if any(cell.strip() for cell in cells[len(names) :]):
                # which value belongs to which column is a guess: half a label would be another class
                raise DataError(
                    f"{path}, line {before + reader.line_num}: {len(cells)} values for {len(names)} columns: got "
                    f"{first_few(cells, 4)}. Put quotes around a value that holds {delimiter!r}."
                )
            if any(cell.strip() for cell in cells):
                yield before + reader.line_num, dict(itertools.zip_longest(names, cells[: len(names)]))


def _header(file: IO[str]) -> tuple[str, int, int]:
    """(first line that is neither blank nor a comment, lines before it, comments among them).

    Leaves the file positioned at the start of that line.
    """
    before = comments = 0
    while True:
        start = file.tell()
        line = file.readline(1 << 20)
        comment = line.startswith("#") and not _names_columns(line)
        if not line or (line.strip() and not comment):
            file.seek(start)
            return line, before, comments
        before += line.endswith(("\n", "\r"))
        comments += comment


def _names_columns(line: str) -> bool:
    """Whether a line that begins with # is a header nevertheless, as numpy and some databases write it."""
    delimiter = max(DELIMITERS, key=line.count)
    cells = [cell.strip() for cell in line.lstrip("# ").split(delimiter)]
    # too many columns: treated as a header, so that the error is about their number
    return len(cells) > MAX_COLUMNS or (len(cells) > 1 and any(map(names_images, cells)))


def _is_data(cells: Sequence[str], folder: Path) -> bool:
    """Whether the first row of a table is data rather than a header: one of its cells names an image."""
    return any(_is_file(cell, folder) for cell in cells)


def _is_file(cell: str, folder: Path) -> bool:
    known = os.path.splitext(cell)[1].lower() in EXTENSIONS  # noqa: PTH122
    if known or not cell or cell.lower() in (*IMAGE_NAMES, *LABEL_NAMES):
        return known
    # a name without its extension
    stem = os.path.join(folder, cell.replace("\\", "/"))  # noqa: PTH118
    return any(os.path.isfile(stem + ending) for ending in EXTENSIONS)  # noqa: PTH113


def _jsonl_rows(path: Path) -> Generator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding=_encoding(path), errors="surrogateescape") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text, object_pairs_hook=_without_duplicates)
            except _DuplicateKeyError as error:
                raise DataError(f"{path}, line {number}: duplicate key {shortened(str(error))}. Keep one.") from None
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}: not a JSON object: got {text.strip()[:60]!r}. Write one {{…}} per line."
                )
            check_width(len(row), f"{path}, line {number}")
            yield number, row


class _DuplicateKeyError(Exception):
    """A JSON object has a key twice."""


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(next(name for name in names if names.count(name) > 1))
    return found


def _parquet(path: Path) -> tuple[list[str], Mapping[str, Any], Callable[[Sequence[str]], Rows]]:
    schema, is_number = read_schema(path), import_parquet().types.is_primitive
    names = list(schema.names)
    first = {field.name: 0 if is_number(field.type) else "?" for field in schema}
    # a parquet file often holds the pixels too: read only the requested columns
    return names, first, lambda columns: _parquet_rows(path, columns, class_names_of(schema))


def _parquet_rows(path: Path, columns: Sequence[str], class_names: Mapping[str, Sequence[str]]) -> Rows:
    for line, row in enumerate(read_rows(path, columns, batch_rows=10_000), start=1):
        for name, value in row.items():
            if isinstance(value, str | bytes | list) and len(value) > MAX_CELL:
                raise DataError(
                    f"{path}, line {line}: {name} is too long: {len(value):,} characters, the limit is {MAX_CELL:,}. "
                    "Shorten it."
                )
        yield line, {name: _class_name(value, class_names.get(name)) for name, value in row.items()}


def _class_name(value: Any, names: Sequence[str] | None) -> Any:
    """The class name for a class index if the file has the names, also in a list; else the value itself."""
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    if names is None or not isinstance(value, int | float) or value != int(value) or not 0 <= value < len(names):
        return value
    return names[int(value)]


def _of_list(feature: Any) -> Any:
    """The feature of a list's items, as a Sequence or a list of one; other features are returned unchanged."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return feature.get("feature", feature) if isinstance(feature, dict) else feature


def class_names_of(schema: Any) -> dict[str, list[str]]:
    """Column → class names, for the ClassLabel columns that Hugging Face's datasets describes in parquet metadata."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        inner = {key: _of_list(value) for key, value in features.items()}
        found = {key: value["names"] for key, value in inner.items() if isinstance(value, dict) and "names" in value}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        key: names for key, names in found.items() if isinstance(names, list) and all(isinstance(n, str) for n in names)
    }
