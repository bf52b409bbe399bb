"""Which images of a split are measured, and how many of them the network was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vivace.errors import DataError, nearest
from vivace.trained_on import TrainedOn

__all__ = ["ALL", "HELD_OUT", "Chosen", "choose_images", "choose_split"]

# what --split takes, and what a result calls its images, beside the names of splits
ALL = "all"
HELD_OUT = "held out"


@dataclass(frozen=True)
class Chosen:
    """The images that are measured."""

    split: str
    """Their split, "all" where the data has one only, or "held out": those of it that were not trained on."""
    rows: np.ndarray
    """int64, positions in the split."""
    num_trained_on: int | None
    """How many of them were trained on; None: the bundle does not tell."""
    num_left_out: int = 0
    """Others of the split that were trained on."""


def choose_split(splits: Iterable[str], asked: str | None, name: str) -> str:
    """The split that the images asked for are in, else test, else val, else train. Raises DataError if there is none.

    Without a split for validation, training held some of its images out: they are what "val" means there.
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
            f"there is no test split in {name}, or any other split. Give --split all for all of its images, val for "
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
    """All images of the split; but where the data has no other and none was asked for, those not trained on, if any.

    A folder that a network was trained on has no test split: what it answers for its training images tells nothing. Of
    data without splits, "train" are the images trained on; without a split for validation, "val" are the others.
    Raises DataError where there are none, or the bundle does not tell.
    """
    rows = np.arange(len(digests_N))
    undivided = only_split and split == "train"
    label = ALL if asked == ALL or undivided else split
    parted = (undivided and asked == "train") or (split == "train" and asked == "val")
    if trained_on is None:
        if parted:
            raise DataError(
                f"the bundle does not tell which images of {name} it was trained on, so --split {asked} can't be "
                f"chosen. Give {'--split all' if undivided else 'another --split'}."
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
    """The images trained on, or held out of training. Raises DataError where there are none."""
    num_known, other = int(known.sum()), "--split all" if undivided else "another --split"
    if not num_known:
        raise DataError(f"no image of {name} was trained on, and so none was held out of training. Give {other}.")
    if asked == "train":
        return Chosen("train", rows[known], num_known)
    if num_known == len(rows):
        raise DataError(f"all {num_known:,} images of {name} were trained on, none was held out. Give {other}.")
    return Chosen(HELD_OUT, rows[~known], 0, num_known)
