"""Detects class folders that all have the same subfolders: they may be folds of a data set rather than classes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

from vivace.data.layouts.listing import Listing
from vivace.data.layouts.splitnames import split_of
from vivace.data.text import first_few
from vivace.errors import DataError

__all__ = ["check_repeats"]

# usual names for the pieces of one data set, with a number or a letter: fold0, split_2, part-b, Run 3
PIECE = re.compile(
    r"(?:k?fold|cv|split|part|partition|(?:sub|data)?set|run|seed|chunk|shard)(?:[\W_]*[0-9]+|[\W_]+[a-z])",
    re.IGNORECASE,
)
# one name in common means nothing: cat/images, dog/images
MIN_COMMON = 2


def check_repeats(listing: Listing, folder: str, known: Collection[str], notes: list[str]) -> None:
    """Raise DataError if the class folders in `folder` seem to be pieces of a data set.

    The structure alone can't distinguish fold0/cat, fold1/cat from cat/2021, dog/2021; the names often can. It is an
    error if all outer folders are named like pieces (fold0, split_1) or splits, or if the inner ones are splits with
    the same subfolders. Otherwise a line that says which folders were taken as classes is added to `notes`.
    known: the classes of a bundle, which are never pieces.
    """
    tree = {name: _inside(listing, path) for name, path in listing.labelled(folder).items()}
    if len(tree) < MIN_COMMON:
        return
    common = _common(tree)
    below = _common_below_splits(listing, tree)
    pieces = [name for name in tree if PIECE.fullmatch(name)]
    are_pieces = len(common) >= MIN_COMMON and pieces and all(name in pieces or split_of(name) for name in tree)
    if (are_pieces or below) and not set(tree) & set(known) and not any(map(listing.has_files, _paths(folder, tree))):
        inner = below or common
        raise DataError(
            f"it is unclear which folders are the classes: {first_few(list(tree), 3)} in {folder} each hold "
            f"{first_few(inner, 3)}. If the inner folders are the classes, give one outer folder as `data`, or rename "
            "the outer ones to train, val and test; if the outer folders are the classes, put the images directly into "
            "them."
        )
    if len(common) >= MIN_COMMON and not all(split_of(name) for name in common):
        notes.append(
            f"the outer folders were taken as the classes ({first_few(list(tree), 3)}), not their subfolders, which "
            f"are the same in each ({first_few(common, 3)})"
        )


def _inside(listing: Listing, folder: str) -> dict[str, str]:
    try:
        return listing.labelled(folder)
    except DataError:
        # broken links in class folders are skipped; any other problem is reported when the images are listed
        return {}


def _paths(folder: str, names: Collection[str]) -> list[str]:
    return [os.path.join(folder, name) for name in names]  # noqa: PTH118


def _common(tree: Mapping[str, Collection[str]]) -> list[str]:
    """Names that occur in every folder of `tree`."""
    return sorted(frozenset.intersection(*(frozenset(inner) for inner in tree.values())))


def _common_below_splits(listing: Listing, tree: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Names in all splits of all folders of `tree`, as cat in a/train/cat and b/train/cat; empty if there are few."""
    if not all(inner and all(split_of(name) for name in inner) for inner in tree.values()):
        return []
    below = {f"{outer}/{name}": _inside(listing, path) for outer, inner in tree.items() for name, path in inner.items()}
    common = _common(below)
    return common if len(common) >= MIN_COMMON else []
