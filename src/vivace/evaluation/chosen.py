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
    """The split that is asked for, else test, else val, else train. Raises DataError if it is not there."""
    known = list(splits)
    if asked is None:
        return next(split for split in ("test", "val", "train") if split in known)
    if asked == ALL and len(known) == 1:
        return known[0]
    if asked not in known:
        raise DataError(f"there is no split {asked!r} in {name}.{nearest(asked, known)} It has {', '.join(known)}.")
    return asked


def choose_images(
    split: str, asked: str | None, digests_N: np.ndarray, trained_on: TrainedOn | None, *, only_split: bool
) -> Chosen:
    """All images of the split; but where the data has no other and none was asked for, those not trained on, if any.

    A folder that a network was trained on has no test split: what it answers for its training images tells nothing.
    """
    rows = np.arange(len(digests_N))
    label = ALL if asked == ALL else split
    if trained_on is None:
        return Chosen(label, rows, None)
    known = trained_on.among(digests_N)
    num_known = int(known.sum())
    if asked is None and only_split and 0 < num_known < len(rows):
        return Chosen(HELD_OUT, np.flatnonzero(~known), 0, num_known)
    return Chosen(ALL if only_split and asked is None and num_known else label, rows, num_known)
