"""Frames of pandas and polars, and data sets of Hugging Face: rows with a column of images and one of classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vivace.data.labelsets import names_in
from vivace.data.layouts.assemble import Items
from vivace.data.layouts.badrows import Unusable
from vivace.data.layouts.columns import Columns, choose_columns
from vivace.data.layouts.finding import Finder
from vivace.data.layouts.manifests import RowReader
from vivace.data.layouts.reading import Reading, Seen, reading_of
from vivace.data.objects.found import Found, in_order
from vivace.data.objects.items import Progress, check_same_twice, raised_by, read_all
from vivace.data.objects.kinds import is_made_by, name_of
from vivace.data.objects.labels import class_names
from vivace.data.place import Data
from vivace.data.splits import BadRow
from vivace.data.text import first_few
from vivace.errors import DataError

__all__ = ["open_frame", "open_huggingface"]


@dataclass(kw_only=True)
class _Table:
    """A table without its images."""

    name: str
    columns: Columns
    cells: dict[str, list[Any]]
    """Column → its values, Python's own; None where a value is missing."""
    files: list[str | None] | None
    """The image files; None: the images are in `image`, or missing where `is_missing`."""
    image: Callable[[int], Any]
    """The image of a row."""
    is_missing: Sequence[bool]
    notes: list[str] = field(default_factory=list)
    pixels: str | None = None
    """As of `Data`."""
    anew: bool = False
    """Images are random."""
    order: tuple[str, ...] | None = None
    """All classes, in their order; None: by name, as in a manifest."""


def open_frame(frame: Any, data: Data, split: str, progress: Progress) -> dict[str, Found]:
    """Split → what a frame holds. Files, relative to the current folder, are read as those of a manifest are.

    data: names of the columns. split: that of rows which name none. Raises DataError.
    """
    name, names = name_of(frame), [str(column) for column in frame.columns]
    if not len(frame):
        raise DataError(f"the frame is empty: got {name} with 0 rows. Give one with a row for each image.")
    first = {column: _cells(frame[:1], number)[0] for number, column in enumerate(names)}
    columns = choose_columns(names, first, name, image_column=data.image_column, label_column=data.label_column)
    cells = {column: _cells(frame, names.index(column)) for column in columns.all}
    images = cells[columns.image]
    table = _Table(
        name=name,
        columns=columns,
        cells=cells,
        files=_files(images),
        image=images.__getitem__,
        is_missing=[image is None for image in images],
        notes=list(columns.notes),
        pixels=data.pixels,
        anew=data.cache is False,
    )
    return _found(table, split, progress, data.multi_label)


def _cells(frame: Any, number: int) -> list[Any]:
    """The values of a column by its position: names may occur twice."""
    if is_made_by(frame, "pandas", "DataFrame"):
        column = frame.iloc[:, number]
        pairs = zip(column.tolist(), column.isna().tolist(), strict=True)
        return [None if is_missing else _listed(value) for value, is_missing in pairs]
    return [_listed(value) for value in frame.to_series(number).to_list()]


def _listed(value: Any) -> Any:
    # labels in an array, as parquet gives them to pandas; arrays of images have more axes
    is_vector = isinstance(value, np.ndarray) and value.ndim == 1
    return value.tolist() if is_vector else value


def _files(images: Iterable[Any]) -> list[str | None] | None:
    """The absolute paths of images that are files, None where one is missing; None if others are among them."""
    files: list[str | None] = []
    for image in images:
        if image is not None and not isinstance(image, str | os.PathLike):
            return None
        # the program that gives them may name files anywhere
        files.append(None if image is None or image == "" else os.path.abspath(os.path.expanduser(image)))  # noqa: PTH100, PTH111
    return files


def open_huggingface(dataset: Any, data: Data, split: str, progress: Progress) -> dict[str, Found]:
    """Split → what a data set of Hugging Face holds: its columns, without the transform that it may have.

    Raises DataError.
    """
    name, names = name_of(dataset), list(dataset.column_names)
    if not len(dataset):
        raise DataError(f"the data set is empty: got {name} with 0 rows. Give one with images.")
    features, notes = dataset.features, list[str]()
    kinds = {column: type(features[column]).__name__ for column in names}
    image_column = data.image_column or next((column for column in names if kinds[column] == "Image"), None)
    # of a list of classes, what it is a list of
    inner = {column: getattr(features[column], "feature", features[column]) for column in names}
    labelled = [column for column in names if type(inner[column]).__name__ == "ClassLabel"]
    label_column = data.label_column or (labelled[0] if len(labelled) == 1 else None)
    columns = choose_columns(names, {}, name, image_column=image_column, label_column=label_column)
    if columns.label is None:
        raise DataError(f"{name}: no column holds the classes: got {first_few(names)}. Name it by `label_column`.")
    if dataset.format["type"] == "custom":
        notes.append(f"the transform of {name} is not used, only its columns {columns.image} and {columns.label}")
    columns = Columns(image=columns.image, label=columns.label)
    # Python's own values, of the columns as they are stored
    plain = dataset.with_format(None)
    labels = list(plain.select_columns([columns.label])[columns.label])
    order = class_names(getattr(inner[columns.label], "names", None), notes)
    if order is not None:
        labels = [_class_of(label, order) for label in labels]
    plain = plain.select_columns([columns.image])
    if kinds[columns.image] == "Image":
        # encoded, so that a file counts as the same image as when it lies in a folder
        plain = plain.cast_column(columns.image, type(features[columns.image])(decode=False))
    table = _Table(
        name=name,
        columns=columns,
        cells={columns.label: labels} if columns.label is not None else {},
        files=_files_of_rows(plain, columns.image),
        image=lambda row: plain[row][columns.image],
        is_missing=[False] * len(labels),
        notes=notes,
        pixels=data.pixels,
        anew=data.cache is False,
        order=order,
    )
    return _found(table, split, progress, data.multi_label)


def _class_of(label: Any, names: tuple[str, ...]) -> Any:
    # test splits of competitions have -1 in place of a class
    if isinstance(label, list | tuple):
        return [names[one] for one in label]
    return None if label is None or (isinstance(label, int) and label < 0) else names[label]


def _files_of_rows(dataset: Any, column: str) -> list[str | None] | None:
    """The files of all rows; None if a row has the bytes of its image, or is no file."""
    files: list[str | None] = []
    for row in dataset:
        image = row[column]
        path = image.get("path") if isinstance(image, dict) and image.get("bytes") is None else image
        if not isinstance(path, str | os.PathLike) or not os.path.isfile(path):  # noqa: PTH113
            return None
        files.append(os.path.abspath(path))  # noqa: PTH100
    return files


def _found(table: _Table, split: str, progress: Progress, multi_label: bool | None) -> dict[str, Found]:
    """Split → its images, sorted by file or in the order of the rows."""
    name, files = table.name, table.files
    # only its name is shown, and files are looked up nowhere but where they are said to be
    finder = Finder(Path.cwd() / name, inside_only=False, follow_links=True)
    find = finder.find if files is not None else lambda cell, where: cell
    rest = [column for column in table.columns.all if column != table.columns.image]
    reading = _reading(table, multi_label)
    reader = RowReader(Path(name), split, find, unit="row", reading=reading)
    for row, is_missing in enumerate(table.is_missing):
        image = files[row] if files is not None else None if is_missing else f"{row:012d}"
        reader.add(table.columns, {table.columns.image: image, **{one: table.cells[one][row] for one in rest}}, row)
    groups, bad = reader.items(), _without_lines(reader.bad())
    notes = [*table.notes, *reading.notes, *finder.notes(), *reader.notes()]
    if not groups and not bad:
        # test images of a competition, which a note counts
        return {split: Found(labels=[], order=(), paths=[], notes=notes)}
    if not groups:
        raise DataError(f"no row of {name} can be used: {bad[0].row.message}. Correct them.")
    found = {key: _split(table, key, rows, progress) for key, rows in groups.items()}
    first = next(iter(found.values()))
    first.notes, first.bad = [*notes, *first.notes], [*bad, *first.bad]
    return found


def _reading(table: _Table, multi_label: bool | None) -> Reading:
    """How the labels are read, by all of them."""
    columns, seen = table.columns, Seen()
    names = list(columns.one_hot) if columns.label is None else [columns.label]
    for row in range(len(table.is_missing)):
        seen.add(columns, {name: table.cells[name][row] for name in names})
    return reading_of(seen, multi_label)


def _without_lines(bad: list[Unusable]) -> list[Unusable]:
    # rows are counted from 0, lines of a file from 1: what the audit says of lines would mislead
    return [Unusable(row._replace(lines=()), labels) for row, labels in bad]


def _split(table: _Table, split: str, rows: Items, progress: Progress) -> Found:
    labels = [label for _, label in rows]
    order = in_order(labels, table.order, numbers=False)
    if table.files is not None:
        return Found(labels=labels, order=order, paths=[file for file, _ in rows])
    label_of = {int(key): label for key, label in rows}

    def pair(position: int) -> tuple[Any, Any]:
        try:
            return table.image(position), label_of[position]
        except MemoryError:
            raise
        except Exception as error:
            raise raised_by(error) from error

    notes: list[str] = []
    check_same_twice(pair, list(label_of), table.name, table.pixels, anew=table.anew)
    read = read_all(pair, list(label_of), table.name, progress, notes, table.pixels, anew=table.anew)
    bad = [
        Unusable(
            BadRow(split, f"{split}/{row:06d}", "raised", (), f"{table.name}, row {row}: {error}"),
            frozenset(names_in(label_of[row])),
        )
        for row, error in read.raised.items()
    ]
    return Found(
        labels=read.labels,
        order=order,
        names=[f"{split}/{row:06d}" for row in read.items.positions_N.tolist()],
        items=read.items,
        is_grey=read.is_grey,
        kind=read.kind,
        notes=notes,
        bad=bad,
    )
