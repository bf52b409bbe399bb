"""Sets of labels: what the label of an image means in multi-label data (no torch here).

The combinations of labels that occur are numbered, and an image's label is the number of its combination. Whatever
groups images by their label (splitting, audit, cache) works as for classes; what means a class looks the combination
up.

M combinations, K labels (the classes), N images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

__all__ = [
    "NO_LABEL",
    "LabelSet",
    "checked_sets",
    "class_counts",
    "combination_names",
    "identity_sets",
    "label_sets_of",
    "labels_per_image",
    "names_in",
    "stored_sets",
    "with_columns",
]

# the text of an empty set
NO_LABEL = "∅"


class LabelSet(str):
    """The labels of one image, compared, sorted and shown as one text: their names in order, such as "cat; dog".

    Two sets have the same text only if they are the same: a backslash marks what of a name would be read otherwise.
    """

    names: tuple[str, ...]

    def __new__(cls, names: Iterable[str]) -> LabelSet:
        ordered = tuple(sorted(set(names)))
        marked = [name.replace("\\", "\\\\").replace(";", "\\;").replace(NO_LABEL, f"\\{NO_LABEL}") for name in ordered]
        made = super().__new__(cls, "; ".join(marked) or NO_LABEL)
        made.names = ordered
        return made


def names_in(label: str) -> tuple[str, ...]:
    """The class names in the label of an image: those of a set, or the one name."""
    return label.names if isinstance(label, LabelSet) else (label,)


def label_sets_of(labels: Iterable[str]) -> tuple[tuple[str, ...], np.ndarray, dict[str, int]]:
    """(classes, label_sets bool [M, K], label → its combination in [0, M)) of the labels of all images."""
    combinations = sorted({LabelSet(names_in(label)) for label in labels})
    classes = tuple(sorted({name for combination in combinations for name in combination.names}))
    column = {name: index for index, name in enumerate(classes)}
    label_sets = np.zeros((len(combinations), len(classes)), dtype=bool)
    for row, combination in enumerate(combinations):
        label_sets[row, [column[name] for name in combination.names]] = True
    return classes, label_sets, {str(combination): row for row, combination in enumerate(combinations)}


def class_counts(labels_N: np.ndarray, num_classes: int, label_sets_MK: np.ndarray | None) -> np.ndarray:
    """How many images have each class, int64 [K]. label_sets_MK: None for data of one label an image."""
    if label_sets_MK is None:
        return np.bincount(labels_N, minlength=num_classes)
    counts_M = np.bincount(labels_N, minlength=len(label_sets_MK))
    return counts_M @ label_sets_MK.astype(np.int64)


def labels_per_image(labels: Iterable[np.ndarray], label_sets_MK: np.ndarray) -> float:
    """The mean number of labels of an image, over all splits; 0 without images."""
    sizes = [label_sets_MK.sum(1)[labels_N] for labels_N in labels]
    every = np.concatenate(sizes) if sizes else np.zeros(0)
    return float(every.mean()) if len(every) else 0.0


def combination_names(label_sets_MK: np.ndarray, classes: Sequence[str]) -> list[str]:
    """The text of each combination, for messages."""
    return [str(LabelSet(classes[column] for column in np.flatnonzero(row).tolist())) for row in label_sets_MK]


def with_columns(label_sets_MK: np.ndarray, columns: Sequence[int | None]) -> tuple[np.ndarray, np.ndarray]:
    """(label_sets with these columns, int64 [M]: the new number of each combination).

    columns: positions of the old columns in the order of the new ones; None: a column of zeros.
    """
    chosen = np.zeros((len(label_sets_MK), len(columns)), dtype=bool)
    for place, column in enumerate(columns):
        if column is not None:
            chosen[:, place] = label_sets_MK[:, column]
    label_sets, first, numbers_M = np.unique(chosen, axis=0, return_index=True, return_inverse=True)
    # in their old order: the same labels of the same data are to have the same numbers, and the same fingerprint
    order = np.argsort(first)
    return label_sets[order], np.argsort(order)[numbers_M.reshape(-1)].astype(np.int64)


def checked_sets(stored: object, num_classes: int) -> np.ndarray:
    """label_sets bool [M, K] from what a file says: for each combination the numbers of its labels, in order.

    Raises ValueError for anything else, or for a combination that comes twice.
    """
    if not isinstance(stored, list) or not all(isinstance(row, list) for row in stored):
        raise ValueError("the sets of labels are no lists")
    label_sets = np.zeros((len(stored), num_classes), dtype=bool)
    for place, row in enumerate(stored):
        if not all(type(number) is int and 0 <= number < num_classes for number in row) or row != sorted(set(row)):
            raise ValueError(f"combination {place} of the labels is out of range")
        label_sets[place, row] = True
    if len({tuple(row) for row in stored}) != len(stored):
        raise ValueError("a combination of labels comes twice")
    return label_sets


def stored_sets(label_sets_MK: np.ndarray) -> list[list[int]]:
    """The inverse of `checked_sets`."""
    return [np.flatnonzero(row).tolist() for row in label_sets_MK]


def identity_sets(num_classes: int) -> np.ndarray:
    """The label_sets of data whose images have one label each."""
    return np.eye(num_classes, dtype=bool)
