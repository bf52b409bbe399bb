"""Opens an object of the user's program as a data source (no torch here)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vivace.data.layouts.assemble import consistent, twins
from vivace.data.layouts.badrows import with_bad_rows
from vivace.data.layouts.splitnames import SPLIT_NAMES, SPLIT_ORDER, split_of
from vivace.data.objects.batches import open_arrays
from vivace.data.objects.found import Found
from vivace.data.objects.items import Progress
from vivace.data.objects.kinds import kind_of, name_of
from vivace.data.objects.tables import open_frame, open_huggingface
from vivace.data.objects.torch_datasets import open_dataset
from vivace.data.place import Data
from vivace.data.splits import ChosenRows, DataSource, Split
from vivace.data.text import count_of, first_few
from vivace.errors import DataError, nearest

__all__ = ["only_split", "open_object"]


def open_object(data: Data, *, require_train: bool, progress: Progress = lambda done, total: None) -> DataSource:
    """The data source of a data set, arrays, a frame, or a dict of these by split.

    progress: called with (images read, images in all), of what has to be read to know it. Raises DataError.
    """
    value = data.where
    found: dict[str, Found] = {}
    if isinstance(value, Mapping):
        for split, part in _by_split(value).items():
            opened = _opened(dataclasses.replace(data, where=part), split, progress)
            if others := opened.keys() - {split}:
                raise DataError(
                    f"the data given for {split} name other splits: got {', '.join(sorted(others))}. Give all of it as "
                    "one, or remove its column of splits."
                )
            found |= opened
    else:
        found = _opened(data, "train", progress)
    return _source_of(name_of(value), found, require_train=require_train)


def only_split(data: Data, choose: Callable[[list[str]], str]) -> tuple[Data, list[str]]:
    """(the data with one split of their dict alone, the others' names): reading an object may take long.

    choose: the split, of the names that there are. Data in another form are returned unchanged.
    """
    if not isinstance(data.where, Mapping):
        return data, []
    parts = _by_split(data.where)
    chosen = choose(list(parts))
    others = [name for name in parts if name != chosen]
    return dataclasses.replace(data, where={chosen: parts[chosen]}), others


def _by_split(parts: Mapping[Any, Any]) -> dict[str, Any]:
    """train, val, test → what the dict has for it. Raises DataError for a name that is no split's, or used twice."""
    found: dict[str, Any] = {}
    for key, part in parts.items():
        split = SPLIT_NAMES.get(str(key).lower()) or split_of(str(key))
        if split is None:
            raise DataError(
                f"the split is unknown: got {str(key)[:60]!r}.{nearest(str(key), SPLIT_NAMES)} Name splits train, val "
                "and test."
            )
        if split in found:
            raise DataError(f"two of the splits are {split}: got {first_few(list(map(str, parts)))}. Rename one.")
        if isinstance(part, Mapping):
            raise DataError(f"the split {split} is a dict: got keys {first_few(list(map(str, part)))}. Give its data.")
        found[split] = part
    return {split: found[split] for split in SPLIT_ORDER if split in found}


def _opened(data: Data, split: str, progress: Progress) -> dict[str, Found]:
    value: Any = data.where
    if isinstance(value, str | Path):
        raise DataError(
            f"the split {split} is a path: got {str(value)[:100]!r}. Give objects alone in a dict, or a folder or "
            "manifest with all of the splits."
        )
    kind = kind_of(value)
    if kind == "frame":
        return open_frame(value, data, split, progress)
    if kind == "huggingface":
        return open_huggingface(value, data, split, progress)
    data.refuse_columns()
    if kind == "arrays":
        return {split: open_arrays(value, split, progress)}
    return {split: open_dataset(value, split, progress)}


def _source_of(name: str, found: Mapping[str, Found], *, require_train: bool) -> DataSource:
    if require_train and "train" not in found:
        raise DataError(f"there are no training images in {name}, only {first_few(list(found))}. Give the split train.")
    notes = [note for part in found.values() for note in part.notes]
    rows = {split: list(enumerate(part.labels)) for split, part in found.items()}
    kept = consistent(rows, notes, require_train=require_train)
    order = dict.fromkeys(one for split in SPLIT_ORDER if split in found for one in found[split].order)
    used = {label for items in kept.values() for _, label in items}
    classes = tuple(one for one in order if one in used)
    if unused := [one for one in order if one not in used and not _was_left_out(one, rows)]:
        notes.append(f"left out {count_of(len(unused), 'class', 'classes')} without an image: {first_few(unused)}")
    notes += twins(classes)
    number = {label: index for index, label in enumerate(classes)}
    root = _root(found)
    source = DataSource(
        name=name,
        classes=classes,
        splits={
            split: _split(split, found[split], np.asarray([row for row, _ in items], dtype=np.int64), number, root)
            for split, items in kept.items()
        },
        root=None if root is None else Path(root),
        channels=1 if all(part.is_grey for part in found.values() if part.labels) else 3,
        notes=tuple(notes),
        given=True,
    )
    return with_bad_rows(source, [row for part in found.values() for row in part.bad])


def _was_left_out(label: str, rows: Mapping[str, list[tuple[int, str]]]) -> bool:
    """Whether images of the class were there, of which another note says that they were left out."""
    return any(found == label for items in rows.values() for _, found in items)


def _split(split: str, part: Found, rows_n: np.ndarray, number: Mapping[str, int], root: str | None) -> Split:
    labels = np.asarray([number[part.labels[row]] for row in rows_n.tolist()], dtype=np.int64)
    whole = len(rows_n) == len(part.labels)
    if part.paths is not None:
        paths = tuple(part.paths[row] for row in rows_n.tolist())
        names = tuple(os.path.relpath(path, root) if root else path for path in paths)
        return Split(name=split, names=names, labels=labels, paths=paths)
    return Split(
        name=split,
        names=tuple(part.names[row] for row in rows_n.tolist()),
        labels=labels,
        arrays=part.arrays if whole or part.arrays is None else ChosenRows(part.arrays, rows_n),
        items=part.items if whole or part.items is None else part.items.select(rows_n),
    )


def _root(found: Mapping[str, Found]) -> str | None:
    """The folder that all files lie in; None if some images are in no files, or there is no such folder."""
    folders = {os.path.dirname(path) for part in found.values() for path in part.paths or ()}  # noqa: PTH120
    if not folders or any(part.paths is None for part in found.values() if part.labels):
        return None
    try:
        return os.path.commonpath(folders)
    except ValueError:
        # on Windows they may be on different drives
        return None
