"""Splits of named, labelled images before decoding, and checks that they can be used (no torch here)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from vivace.data.labelsets import class_counts, combination_names, with_columns
from vivace.data.layouts.listing import skipped_summary
from vivace.errors import DataError

__all__ = [
    "Arrays",
    "BadRow",
    "ChosenRows",
    "DataSource",
    "Items",
    "Split",
    "check_source",
    "renumbered",
    "without_lost_classes",
]

# with fewer images nothing could be held out for validation
MIN_IMAGES_PER_CLASS = 2


class Arrays(Protocol):
    """[N, H, W, C], in memory or converted when it is indexed, along the first axis alone.

    uint8 with C 1 or 3; or what the source says of images that are kept as they are.
    """

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class ChosenRows:
    """Some images of an array, without a copy of them: the array may be a view of a file, larger than the memory."""

    def __init__(self, arrays: Arrays, rows_n: np.ndarray) -> None:
        """rows_n: int64 [n], their positions."""
        self._arrays, self._rows_n = arrays, rows_n
        self.shape: tuple[int, ...] = (len(rows_n), *arrays.shape[1:])
        self.dtype: np.dtype[Any] = arrays.dtype

    def __len__(self) -> int:
        return len(self._rows_n)

    def __getitem__(self, rows: Any, /) -> Any:
        return self._arrays[self._rows_n[rows]]


class Items(Protocol):
    """Images that are read one by one, such as those of a torch Dataset, in this process and in order."""

    @property
    def digests(self) -> np.ndarray:
        """bytes [N], blake2b-128 of each image's contents in hexadecimal; all zeros where it can't be read."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """int32 [N, 2], height and width, px; 0 where only decoding tells."""
        ...

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes | np.ndarray:
        """The bytes of an image file, or uint8 [H, W, C]: C is 1 grey, 3 RGB, 2 and 4 the same with alpha.

        Where the source says that images are kept as they are, [H, W, C] of its dtype and channels.
        Raises ImageError.
        """
        ...

    def select(self, rows: np.ndarray) -> Items:
        """Those at these positions, int64 [n]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Split:
    """Labelled images: in files, in one array, or read one by one. One of the three is given."""

    name: str
    """train, val or test."""
    names: tuple[str, ...]
    """A stable id of each image: its path below the root, or for arrays such as "train/00017"."""
    labels: np.ndarray
    """int64 [N], in [0, K); where the data source has `label_sets`, in [0, M)."""
    paths: tuple[str, ...] | None = None
    """Files; undecodable bytes are surrogates, as from os.fsdecode."""
    arrays: Arrays | None = None
    """As `Arrays` says."""
    items: Items | None = None
    """What is neither in files nor in one array."""

    def __len__(self) -> int:
        return len(self.labels)


class BadRow(NamedTuple):
    """A row of a manifest that can't be used."""

    split: str
    file: str
    """The file name in the manifest, or the name of an item."""
    reason: str
    """missing_file, missing_label, format_not_allowed or contradiction; of a data set's item, raised."""
    lines: tuple[int, ...]
    message: str


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A data set before decoding."""

    name: str
    classes: tuple[str, ...]
    """The names of the K classes, or labels."""
    splits: Mapping[str, Split]
    """train, and perhaps val and test."""
    root: Path | None = None
    file: Path | None = None
    """The table or archive that was opened; None: a folder, a name or an object was."""
    channels: int = 3
    """1 for a greyscale data set, otherwise 3; another number of images that are kept as they are."""
    pixels: Literal["uint8", "uint16", "float32"] = "uint8"
    """dtype of the images; those of uint16 and float32 are kept as they are."""
    ignored: tuple[str, ...] = field(default=())
    """Skipped files, relative to the root; folders end in a slash."""
    allow_leaks: bool = False
    """Keep images in train that are also in another split."""
    notes: tuple[str, ...] = field(default=())
    """What was left out, guessed or missing, for the user; a line each."""
    bad_rows: tuple[BadRow, ...] = field(default=())
    """Rows of a manifest that can't be used and are in no split; the audit treats them like corrupt images."""
    lost_classes: tuple[str, ...] = field(default=())
    """Classes whose rows are all among the bad rows."""
    given: bool = False
    """It is an object of the user's program: nothing finds it again, not even by `root`, where its files may lie."""
    anew: bool = False
    """Its training images are read anew for each epoch: a read may give another image than the one before."""
    label_sets: np.ndarray | None = None
    """bool [M, K], the combinations of labels that occur: an image's label is a row of it. None: an image has one."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """Below which its images lie: `root`, and that of images which a table names elsewhere. Of an object: none."""
        if self.given:
            return ()
        elsewhere = {
            os.path.dirname(name)  # noqa: PTH120
            for split in self.splits.values()
            for name in split.names
            if name.startswith(os.sep)
        }
        common = [Path(os.path.commonpath(elsewhere))] if elsewhere else []
        return (*([] if self.root is None else [self.root]), *common)

    @property
    def group_names(self) -> tuple[str, ...]:
        """What the values of `Split.labels` mean, for messages: classes, or combinations of labels."""
        return self.classes if self.label_sets is None else tuple(combination_names(self.label_sets, self.classes))

    def counts(self, labels_N: np.ndarray) -> np.ndarray:
        """How many of these images have each class, int64 [K]."""
        return class_counts(labels_N, len(self.classes), self.label_sets)


def check_source(source: DataSource, *, require_train: bool) -> None:
    """Raise DataError if the source can't be trained on or, without `require_train`, can't be evaluated on."""
    if not any(len(split) for split in source.splits.values()):
        why = "; ".join([*source.notes, *filter(None, [skipped_summary(source.ignored, 0)])])[:250]
        place = f"{source.root or source.name}{': ' if why else ''}{why}"
        raise DataError(f"there are no images in {place}. Put them into one folder per class.")
    if not require_train:
        return
    if len(source.classes) < 2 and source.label_sets is not None:
        raise DataError(f"there are too few labels: got {list(source.classes)}. At least 2 are needed.")
    if len(source.classes) < 2:
        raise DataError(f"there is only one class: {source.classes[0]!r}. A classifier needs at least 2 class folders.")
    counts = source.counts(source.splits["train"].labels)
    for name, count in zip(source.classes, counts, strict=True):
        if count < MIN_IMAGES_PER_CLASS:
            rest = (
                f"{name!r} has {count}, at least {MIN_IMAGES_PER_CLASS} are needed to train and validate. Add some, or"
            )
            if source.label_sets is not None:
                raise DataError(f"a label has too few images: {rest} leave the label out.")
            raise DataError(f"a class has too few images: {rest} leave the class out.")


def renumbered(split: Split, labels: np.ndarray) -> Split:
    """The split with new labels, without the images whose new label is negative. labels: int64 [N]."""
    if (labels >= 0).all():
        return dataclasses.replace(split, labels=labels)
    kept = np.flatnonzero(labels >= 0)
    return Split(
        name=split.name,
        names=tuple(split.names[row] for row in kept),
        labels=labels[kept],
        paths=None if split.paths is None else tuple(split.paths[row] for row in kept),
        arrays=None if split.arrays is None else ChosenRows(split.arrays, kept),
        items=None if split.items is None else split.items.select(kept),
    )


def without_lost_classes(source: DataSource, usable: Mapping[str, np.ndarray]) -> tuple[DataSource, tuple[str, ...]]:
    """(source without the classes that have too few usable images, names of these classes).

    usable: split → labels of its usable images. Only classes that had enough images before are left out, and none if
    fewer than two classes would remain.
    """
    num_classes = len(source.classes)
    before, after = (source.counts(labels) for labels in (source.splits["train"].labels, usable["train"]))
    lost_K = (after < MIN_IMAGES_PER_CLASS) & (before >= MIN_IMAGES_PER_CLASS)
    if not lost_K.any() or num_classes - lost_K.sum() < 2:
        return source, ()
    numbers = np.where(lost_K, -1, np.cumsum(~lost_K) - 1)
    label_sets = source.label_sets
    if label_sets is not None:
        # the images stay, without the labels
        label_sets, numbers = with_columns(label_sets, np.flatnonzero(~lost_K).tolist())
    kept, lost = (tuple(source.classes[index] for index in np.flatnonzero(mask)) for mask in (~lost_K, lost_K))
    splits = {key: renumbered(split, numbers[split.labels]) for key, split in source.splits.items()}
    return dataclasses.replace(source, classes=kept, splits=splits, label_sets=label_sets), lost
