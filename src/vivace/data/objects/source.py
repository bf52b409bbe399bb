"""Opens an object of the user's program as a data source (no torch here)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivace.data.labelsets import LabelSet, label_sets_of, names_in
from vivace.data.layouts.assemble import consistent, twins
from vivace.data.layouts.badrows import with_bad_rows
from vivace.data.layouts.splitnames import SPLIT_NAMES, SPLIT_ORDER, split_of
from vivace.data.objects.batches import open_arrays
from vivace.data.objects.found import Found
from vivace.data.objects.items import Progress
from vivace.data.objects.kinds import kind_of, name_of
from vivace.data.objects.pixels import Kind, shown_kind
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
    if data.multi_label:
        for part in found.values():
            part.labels = [LabelSet(names_in(label)) for label in part.labels]
    source = _source_of(name_of(value), found, require_train=require_train)
    return _read_anew(source) if data.cache is False else source


def _read_anew(source: DataSource) -> DataSource:
    """The source, its images read anew for each epoch. Raises DataError for images that no read changes."""
    if "train" in source.splits and source.splits["train"].items is None:
        raise DataError(
            f"cache=False is for data sets whose items are random: got {source.name}, which is read in "
            "another way. Leave it out."
        )
    note = "training images are read anew for each epoch"
    if "val" not in source.splits:
        note += "; those for validation, held out of the same data, are read once, as random as they are"
    return dataclasses.replace(source, anew=True, notes=(*source.notes, note))


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
        return {split: open_arrays(value, split, progress, data)}
    return {split: open_dataset(value, split, progress, data)}


def _source_of(name: str, found: Mapping[str, Found], *, require_train: bool) -> DataSource:
    if require_train and "train" not in found:
        raise DataError(f"there are no training images in {name}, only {first_few(list(found))}. Give the split train.")
    notes = [note for part in found.values() for note in part.notes]
    rows = {split: list(enumerate(part.labels)) for split, part in found.items()}
    kept = consistent(rows, notes, require_train=require_train)
    several = any(isinstance(label, LabelSet) for items in kept.values() for _, label in items)
    order = dict.fromkeys(one for split in SPLIT_ORDER if split in found for one in found[split].order)
    used = {name for items in kept.values() for _, label in items for name in names_in(label)}
    classes = tuple(one for one in order if one in used)
    if unused := [one for one in order if one not in used and not _was_left_out(one, rows)]:
        notes.append(f"left out {count_of(len(unused), 'class', 'classes')} without an image: {first_few(unused)}")
    notes += twins(classes)
    number, label_sets = {label: index for index, label in enumerate(classes)}, None
    if several:
        sorted_names, columns_MK, number = label_sets_of(label for items in kept.values() for _, label in items)
        label_sets = columns_MK[:, [sorted_names.index(name) for name in classes]]
    root, kind = _root(found), _kind(found)
    source = DataSource(
        name=name,
        classes=classes,
        splits={
            split: _split(split, found[split], items, number, root, several=several) for split, items in kept.items()
        },
        label_sets=label_sets,
        root=None if root is None else Path(root),
        channels=_channels(found) if kind is None else kind[0],
        pixels="uint8" if kind is None else kind[1],  # type: ignore[arg-type]
        notes=tuple(notes),
        given=True,
    )
    return with_bad_rows(source, [row for part in found.values() for row in part.bad])


def _channels(found: Mapping[str, Found]) -> int:
    return 1 if all(part.is_grey for part in found.values() if part.labels) else 3


def _kind(found: Mapping[str, Found]) -> Kind:
    """That of the images of all splits. Raises DataError if they differ."""
    kinds = {split: part.kind for split, part in found.items() if part.labels}
    if len(set(kinds.values())) > 1:
        told = "; ".join(f"{split} {shown_kind(kind)}" for split, kind in kinds.items())
        raise DataError(f"the splits have images of different kinds: got {told}. Give all of one kind.")
    return next(iter(kinds.values()), None)


def _was_left_out(label: str, rows: Mapping[str, list[tuple[int, str]]]) -> bool:
    """Whether images of the class were there, of which another note says that they were left out."""
    return any(label in names_in(found) for items in rows.values() for _, found in items)


def _split(
    split: str,
    part: Found,
    items: Sequence[tuple[int, str]],
    number: Mapping[str, int],
    root: str | None,
    *,
    several: bool,
) -> Split:
    rows_n = np.asarray([row for row, _ in items], dtype=np.int64)
    texts = (str(LabelSet(names_in(label))) if several else label for _, label in items)
    labels = np.asarray([number[text] for text in texts], dtype=np.int64)
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
