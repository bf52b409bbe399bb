"""Which images of a split are evaluated, and how many of them the network was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vivace.errors import DataError, nearest
from vivace.trained_on import TrainedOn

__all__ = ["ALL", "HELD_OUT", "Chosen", "choose_images", "choose_split"]

# values besides the names of splits: of the `split` parameter, and of the result
ALL = "all"
HELD_OUT = "held out"


@dataclass(frozen=True)
class Chosen:
    """The images that are evaluated."""

    split: str
    """Their split; "all" if the data has only one; or "held out": its images that were not trained on."""
    rows: np.ndarray
    """int64, positions in the split."""
    num_trained_on: int | None
    """How many of them were trained on; None: the bundle has no record of that."""
    num_left_out: int = 0
    """Number of other images of the split, which were trained on."""


def choose_split(splits: Iterable[str], asked: str | None, name: str) -> str:
    """The split with the images that are asked for; by default test, else val, else train. Raises DataError without it.

    If the data has no validation split, "val" means the training images that were held out, which are in train.
    """
    known = list(splits)
    if asked is None:
        return next(split for split in ("test", "val", "train") if split in known)
    if asked == ALL and len(known) == 1:
        return known[0]
    if asked == "val" and asked not in known and "train" in known:
        return "train"
    if asked in known:
        return asked
    if known == ["train"] and asked == "test":
        raise DataError(
            f"there is no test split in {name}, or any other split. Give `split='all'` for all of its images, val for "
            "those held out of training, or train for those trained on."
        )
    raise DataError(f"there is no split {asked!r} in {name}.{nearest(asked, known)} It has {', '.join(known)}.")


def choose_images(
    split: str,
    asked: str | None,
    digests_N: np.ndarray,
    trained_on: TrainedOn | None,
    *,
    only_split: bool,
    name: str = "the data",
) -> Chosen:
    """All images of the split; if the data has only one split and none was asked for, those not trained on, if any.

    Accuracy on training images says nothing about new images. For data without splits, "train" means the images that
    were trained on; without a validation split, "val" means the others. Raises DataError if there are none, or if the
    bundle has no record of its training images.
    """
    rows = np.arange(len(digests_N))
    undivided = only_split and split == "train"
    label = ALL if asked == ALL or undivided else split
    parted = (undivided and asked == "train") or (split == "train" and asked == "val")
    other = "`split='all'`" if undivided else "another `split`"
    if trained_on is None:
        if parted:
            raise DataError(
                f"the bundle does not tell which images of {name} it was trained on, so `split={asked!r}` can't be "
                f"chosen. Give {other}."
            )
        return Chosen(label, rows, None)
    known = trained_on.among(digests_N)
    num_known = int(known.sum())
    if parted:
        return _part(asked, rows, known, f"{name}{'' if undivided else ', train'}", undivided)
    if asked is None and only_split and 0 < num_known < len(rows):
        return Chosen(HELD_OUT, np.flatnonzero(~known), 0, num_known)
    return Chosen(ALL if only_split and asked is None and num_known else label, rows, num_known)


def _part(asked: str | None, rows: np.ndarray, known: np.ndarray, name: str, undivided: bool) -> Chosen:
    """The images that were trained on, or those held out. Raises DataError if there are none."""
    num_known, other = int(known.sum()), "`split='all'`" if undivided else "another `split`"
    if not num_known:
        raise DataError(f"no image of {name} was trained on, and so none was held out of training. Give {other}.")
    if asked == "train":
        return Chosen("train", rows[known], num_known)
    if num_known == len(rows):
        raise DataError(f"all {num_known:,} images of {name} were trained on, none was held out. Give {other}.")
    return Chosen(HELD_OUT, rows[~known], 0, num_known)
