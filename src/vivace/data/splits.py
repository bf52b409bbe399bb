"""Splits of named, labelled images that nobody has opened yet, and what makes them unfit (no torch here)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from vivace.data.layouts.listing import passed_over
from vivace.errors import DataError

__all__ = ["BadRow", "DataSource", "Split", "check_source", "renumbered", "without_lost_classes"]

# fewer images leave nothing to hold out for validation
MIN_IMAGES_PER_CLASS = 2


@dataclass(frozen=True, kw_only=True)
class Split:
    """Labelled images, in files or in one array."""

    name: str
    """train, val or test."""
    names: tuple[str, ...]
    """A stable id of each image: its path below the root, or such as "train/00017" for arrays."""
    labels: np.ndarray
    """int64 [N], in [0, K)."""
    paths: tuple[str, ...] | None = None
    """Files; undecodable bytes are surrogates, as os.fsdecode gives them. None when `arrays` holds the pixels."""
    arrays: np.ndarray | None = None
    """uint8 [N, H, W, C] with C 1 or 3."""

    def __len__(self) -> int:
        return len(self.labels)


class BadRow(NamedTuple):
    """What a manifest lists and can't be used."""

    split: str
    file: str
    """As the manifest names it."""
    reason: str
    """missing_file, missing_label, format_not_allowed or contradiction."""
    lines: tuple[int, ...]
    message: str


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A data set before decoding."""

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    """train, and perhaps val and test."""
    root: Path | None = None
    channels: Literal[1, 3] = 3
    """1 for a grey data set, 3 otherwise."""
    ignored: tuple[str, ...] = field(default=())
    """Files that were passed over, relative to the root; folders end in a slash."""
    allow_leaks: bool = False
    """Images of train that are in another split too stay in train."""
    notes: tuple[str, ...] = field(default=())
    """What was left out, guessed or missed, a line each, for people."""
    bad_rows: tuple[BadRow, ...] = field(default=())
    """Rows of a manifest that are no images of any split: the audit judges them as it judges corrupt images."""
    lost_classes: tuple[str, ...] = field(default=())
    """Classes of which every row is among them."""


def check_source(source: DataSource, *, require_train: bool) -> None:
    """Raise DataError if the source can't be trained on (or, without `require_train`, not even evaluated on)."""
    if not any(len(split) for split in source.splits.values()):
        why = "; ".join([*source.notes, *filter(None, [passed_over(source.ignored, 0)])])[:250]
        place = f"{source.root or source.name}{': ' if why else ''}{why}"
        raise DataError(f"there are no images in {place}. Put them into one folder per class.")
    if not require_train:
        return
    if len(source.classes) < 2:
        raise DataError(f"there is one class only: {source.classes[0]!r}. A classifier needs at least 2 class folders.")
    counts = np.bincount(source.splits["train"].labels, minlength=len(source.classes))
    for name, count in zip(source.classes, counts, strict=True):
        if count < MIN_IMAGES_PER_CLASS:
            raise DataError(
                f"a class has too few images: {name!r} has {count}, at least {MIN_IMAGES_PER_CLASS} are "
                "needed to train and validate. Add some, or leave the class out."
            )


def renumbered(split: Split, labels: np.ndarray) -> Split:
    """The split with other labels, without the images whose label is negative."""
    if (labels >= 0).all():
        return dataclasses.replace(split, labels=labels)
    kept = np.flatnonzero(labels >= 0)
    return Split(
        name=split.name,
        names=tuple(split.names[row] for row in kept),
        labels=labels[kept],
        paths=None if split.paths is None else tuple(split.paths[row] for row in kept),
        arrays=None if split.arrays is None else split.arrays[kept],
    )


def without_lost_classes(source: DataSource, usable: Mapping[str, np.ndarray]) -> tuple[DataSource, tuple[str, ...]]:
    """The source without the classes that can't be trained on, and those; the source itself if fewer than two remain.

    usable: split → the labels of its images that can be used. What was too little from the start is not left out.
    """
    num_classes = len(source.classes)
    before, after = (
        np.bincount(labels, minlength=num_classes) for labels in (source.splits["train"].labels, usable["train"])
    )
    lost_K = (after < MIN_IMAGES_PER_CLASS) & (before >= MIN_IMAGES_PER_CLASS)
    if not lost_K.any() or num_classes - lost_K.sum() < 2:
        return source, ()
    numbers_K = np.where(lost_K, -1, np.cumsum(~lost_K) - 1)
    kept, lost = (tuple(source.classes[index] for index in np.flatnonzero(mask)) for mask in (~lost_K, lost_K))
    splits = {key: renumbered(split, numbers_K[split.labels]) for key, split in source.splits.items()}
    return dataclasses.replace(source, classes=kept, splits=splits), lost
