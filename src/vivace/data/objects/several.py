"""Several labels an image, as a program has them: rows of 0 and 1, or lists of class names or numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vivace.data.arrays import is_tensor
from vivace.data.labelsets import LabelSet
from vivace.data.objects.labels import Label, label_of, names_of
from vivace.data.text import count_of
from vivace.errors import DataError

__all__ = ["Named", "Several", "given_label", "named"]

# of a vector of labels
MAX_LABELS = 100_000


class Several(NamedTuple):
    """The label of one image as it was given: a row of 0 and 1, or a list, perhaps empty."""

    values: tuple[Any, ...]
    """Numbers, True and False, or text."""
    is_list: bool
    """Python's list, tuple or set; False: a vector of NumPy or torch."""


class Named(NamedTuple):
    """The labels of all images of one data set by their names."""

    labels: list[str]
    """Class names; or a LabelSet for each image."""
    are_numbers: bool
    """The names are numbers, since the data set names no classes."""


def given_label(value: Any, where: str, multi_label: bool | None) -> Label | Several:
    """One label as `label_of` gives it, or Several. multi_label: as of `Data`. Raises DataError."""
    if multi_label is not False:
        if is_tensor(value) or isinstance(value, np.ndarray):
            if value.ndim == 1 and (value.shape[0] != 1 or multi_label):
                return Several(tuple(_checked(value.tolist(), where)), is_list=False)
        elif isinstance(value, list | tuple | set | frozenset):
            items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
            return Several(tuple(_checked([_plain(item) for item in items], where)), is_list=True)
    return label_of(value, where)


def _plain(value: Any) -> Any:
    return value.item() if (is_tensor(value) and value.numel() == 1) or isinstance(value, np.generic) else value


def _checked(values: list[Any], where: str) -> list[Any]:
    if len(values) > MAX_LABELS:
        raise DataError(f"{where}: too many labels: got {len(values):,}. Give at most {MAX_LABELS:,}.")
    for value in values:
        if not isinstance(value, int | float | str) or value != value:
            raise DataError(
                f"{where}: a label is no number and no text: got {str(value)[:40]}. Give 0 and 1, or names."
            )
    return values


def named(
    labels: Sequence[Label | Several],
    classes: tuple[str, ...] | None,
    where: str,
    notes: list[str],
    *,
    multi_label: bool | None,
) -> Named:
    """The names of the labels; a note says how several were read.

    Rows of 0 and 1, all of one length, that of `classes` if there are any, say for each class whether an image has it;
    other lists hold numbers or names of classes. Raises DataError for anything else, and for rows of which each has a
    single 1, unless `multi_label` is true.
    """
    if all(_is_single(label) for label in labels) and not multi_label:
        # a list of one is that class, as in a table
        plain = [label_of(label.values[0], where) if isinstance(label, Several) else label for label in labels]
        return Named(names_of(plain, classes, where), all(isinstance(label, int) for label in plain))
    if not any(isinstance(label, Several) for label in labels):
        return named([Several((label,), is_list=True) for label in labels], classes, where, [], multi_label=True)
    each = [label if isinstance(label, Several) else Several((label,), is_list=True) for label in labels]
    _check_lengths(each, classes, where)
    if _are_rows(each, classes):
        return _of_rows(each, classes, where, notes, multi_label)
    flat: list[Label] = [
        label_of(int(value) if isinstance(value, bool) else value, f"{where}, item {position}")
        for position, label in enumerate(each)
        for value in label.values
    ]
    names = iter(names_of(flat, classes, where))
    sets: list[str] = [LabelSet(next(names) for _ in label.values) for label in each]
    empty = sum(not label.values for label in each)
    notes.append(f"several labels an image, in lists{_without(empty)}")
    return Named(sets, all(isinstance(label, int) for label in flat) and classes is None)


def _is_single(label: Label | Several) -> bool:
    return not isinstance(label, Several) or (label.is_list and len(label.values) == 1)


def _are_rows(labels: Sequence[Several], classes: tuple[str, ...] | None) -> bool:
    lengths = {len(label.values) for label in labels}
    wanted = {len(classes)} if classes is not None else lengths
    return len(lengths) == 1 and lengths == wanted and min(lengths) > 1 and all(_is_flag(v) for v in _values(labels))


def _check_lengths(labels: Sequence[Several], classes: tuple[str, ...] | None, where: str) -> None:
    """Raise DataError for rows of 0 and 1 of another length than there are classes, which are no lists of numbers."""
    lengths = {len(label.values) for label in labels}
    if classes is None or len(lengths) != 1 or lengths == {len(classes)} or not all(map(_is_flag, _values(labels))):
        return
    if any(len(set(label.values)) < len(label.values) for label in labels):
        raise DataError(
            f"{where}: rows of labels are not as long as there are classes: got {lengths.pop()} values for "
            f"{len(classes)} classes. Give a value for each class."
        )


def _is_flag(value: Any) -> bool:
    return not isinstance(value, str) and value in (0, 1)


def _values(labels: Iterable[Several]) -> Iterable[Any]:
    return (value for label in labels for value in label.values)


def _of_rows(
    labels: Sequence[Several],
    classes: tuple[str, ...] | None,
    where: str,
    notes: list[str],
    multi_label: bool | None,
) -> Named:
    hot_NK = np.asarray([label.values for label in labels], dtype=bool)
    counts_N = hot_NK.sum(1)
    if (counts_N == 1).all() and not multi_label:
        raise DataError(
            f"{where}: each row of labels has a single 1: got {list(hot_NK.shape)}. Of one class an image give "
            "labels.argmax(1); of several, vivace.Data(..., multi_label=True)."
        )
    names = classes or tuple(map(str, range(hot_NK.shape[1])))
    sets: list[str] = [LabelSet(names[column] for column in np.flatnonzero(row).tolist()) for row in hot_NK]
    notes.append(f"several labels an image: rows of {len(names)} values, 0 or 1{_without(int((counts_N == 0).sum()))}")
    return Named(sets, classes is None)


def _without(count: int) -> str:
    return f"; {count_of(count, 'image')} without any" if count else ""
