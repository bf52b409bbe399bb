"""Map-style data sets of (image, label): torch's, torchvision's, or any object with `__len__` and `__getitem__`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vivace.data.layouts.badrows import Unusable
from vivace.data.objects.found import Found, in_order
from vivace.data.objects.items import Pair, Progress, Raised, check_same_twice, raised_by, read_all
from vivace.data.objects.kinds import name_of
from vivace.data.objects.labels import class_names, label_of, names_of
from vivace.data.objects.several import given_label, named
from vivace.data.place import Data
from vivace.data.splits import BadRow
from vivace.data.text import first_few
from vivace.errors import DataError

__all__ = ["open_dataset"]

TORCH = "torch.utils.data.dataset"
FOLDERS = ("ImageFolder", "DatasetFolder")


class _Flat(NamedTuple):
    """A data set without its Subsets and ConcatDatasets."""

    parts: list[Any]
    part_N: np.ndarray
    """int64, for each item which of the parts it is in."""
    index_N: np.ndarray
    """int64, its position in the part."""


def open_dataset(dataset: Any, split: str, progress: Progress, data: Data) -> Found:
    """What a data set holds. Files of an ImageFolder without transforms are read as those of a folder are.

    Items for which it raises an exception are bad images. Raises DataError for items that are no pair of image and
    label, for random transforms, and for what `labels` refuses. data: the options.
    """
    name, notes = name_of(dataset), list[str]()
    flat = _flat(dataset, name)
    if not len(flat.index_N):
        raise DataError(f"the data set is empty: got {name} with 0 items. Give one with images.")
    classes = [_classes_of(part, notes) for part in flat.parts]
    if all(_is_plain_folder(part) for part in flat.parts):
        return _of_files(flat, classes, name, notes)
    pair, pixels = _pair_of(flat, name, data.multi_label), data.pixels
    positions = range(len(flat.index_N))
    check_same_twice(pair, positions, name, pixels, anew=data.cache is False)
    read = read_all(pair, positions, name, progress, notes, pixels, anew=data.cache is False)
    part_n = flat.part_N[read.items.positions_N]
    labels = [""] * len(read.labels)
    numbers = True
    for number, known in enumerate(classes):
        own = np.flatnonzero(part_n == number).tolist()
        given = [read.labels[row] for row in own]
        found = named(given, known, name, notes, multi_label=data.multi_label)
        numbers = numbers and found.are_numbers
        for row, label in zip(own, found.labels, strict=True):
            labels[row] = label
    return Found(
        labels=labels,
        order=_order(labels, classes, numbers=numbers),
        names=[f"{split}/{position:06d}" for position in read.items.positions_N.tolist()],
        items=read.items,
        is_grey=read.is_grey,
        kind=read.kind,
        notes=notes,
        bad=[_bad(split, position, name, error) for position, error in read.raised.items()],
    )


def _bad(split: str, position: int, name: str, error: Raised) -> Unusable:
    row = BadRow(split, f"{split}/{position:06d}", "raised", (), f"item {position} of {name} can't be read: {error}")
    return Unusable(row, frozenset())


def _order(labels: list[str], classes: list[tuple[str, ...] | None], *, numbers: bool) -> tuple[str, ...]:
    """The classes in their order: each part's, one after the other."""
    named = [known for known in classes if known is not None]
    if len(named) < len(classes):
        return in_order(labels, None, numbers=numbers and not named)
    return tuple(dict.fromkeys(name for known in named for name in known))


def _flat(dataset: Any, name: str) -> _Flat:
    """Only torch's own classes are taken apart: one derived from them may do something else."""
    kind = type(dataset)
    if kind.__module__ == TORCH and kind.__name__ == "Subset":
        inner = _flat(dataset.dataset, name)
        try:
            chosen = np.asarray(dataset.indices, dtype=np.int64).reshape(-1)
            return _Flat(inner.parts, inner.part_N[chosen], inner.index_N[chosen])
        except (IndexError, TypeError, ValueError) as error:
            raise DataError(f"the indices of a Subset are wrong: {error} in {name}. Give whole numbers.") from None
    if kind.__module__ == TORCH and kind.__name__ == "ConcatDataset":
        inner_flats = [_flat(part, name) for part in dataset.datasets]
        starts = np.cumsum([0, *(len(inner.parts) for inner in inner_flats)])
        return _Flat(
            [part for inner in inner_flats for part in inner.parts],
            np.concatenate([inner.part_N + start for inner, start in zip(inner_flats, starts[:-1], strict=True)]),
            np.concatenate([inner.index_N for inner in inner_flats]),
        )
    try:
        length = len(dataset)
    except Exception as error:
        raise DataError(
            f"the data set has no length: len() of {name} raised {raised_by(error)}. Give a map-style Dataset."
        ) from None
    return _Flat([dataset], np.zeros(length, dtype=np.int64), np.arange(length))


def _classes_of(part: Any, notes: list[str]) -> tuple[str, ...] | None:
    try:
        classes, numbers = getattr(part, "classes", None), getattr(part, "class_to_idx", None)
    except Exception as error:
        notes.append(f"the attribute classes can't be read and was ignored: {raised_by(error)}")
        return None
    if classes is None and isinstance(numbers, Mapping) and sorted(numbers.values()) == list(range(len(numbers))):
        classes = sorted(numbers, key=numbers.__getitem__)
    return class_names(classes, notes)


def _is_plain_folder(part: Any) -> bool:
    """Whether it is torchvision's ImageFolder with its own loader and without transforms: then its files are the data.

    Not one derived from it, which may read other images than those of its files.
    """
    module = sys.modules.get("torchvision.datasets.folder")
    return (
        module is not None
        and type(part) in [getattr(module, name, None) for name in FOLDERS]
        and part.loader is getattr(module, "default_loader", None)
        and part.transform is part.target_transform is part.transforms is None
        and "__getitem__" not in vars(part)
    )


def _of_files(flat: _Flat, classes: list[tuple[str, ...] | None], name: str, notes: list[str]) -> Found:
    paths, labels = [], []
    for number, index in zip(flat.part_N.tolist(), flat.index_N.tolist(), strict=True):
        path, label = flat.parts[number].samples[index]
        paths.append(os.path.abspath(path))  # noqa: PTH100 (a million files)
        labels += names_of([label_of(label, f"item {index} of {name}")], classes[number], name)
    return Found(labels=labels, order=_order(labels, classes, numbers=False), paths=paths, notes=notes)


def _pair_of(flat: _Flat, name: str, multi_label: bool | None) -> Pair:
    def pair(position: int) -> tuple[Any, Any]:
        part = flat.parts[flat.part_N[position]]
        try:
            # a Python integer: some data sets take no other
            item = part[int(flat.index_N[position])]
        except MemoryError:
            raise
        except Exception as error:
            raise raised_by(error) from error
        where = f"item {position} of {name}"
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{where} is no pair: got {_told(item)}. Return (image, label) from __getitem__.")
        return item[0], given_label(item[1], where, multi_label)

    return pair


def _told(item: Any) -> str:
    if item is None:
        return "None"
    if isinstance(item, Mapping):
        return f"a dict with {first_few([str(key) for key in item]) or 'nothing'}"
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {len(item)}"
    return f"a {type(item).__name__}"
