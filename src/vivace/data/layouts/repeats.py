"""Subfolders whose names repeat in all class folders: folds and copies of a data set, or parts of classes?"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

from vivace.data.layouts.assemble import some
from vivace.data.layouts.listing import Listing
from vivace.data.layouts.splitnames import split_of
from vivace.errors import DataError

__all__ = ["check_repeats"]

# what people call the pieces of one data set, with a number or a letter: fold0, split_2, part-b, Run 3
PIECE = re.compile(
    r"(?:k?fold|cv|split|part|partition|(?:sub|data)?set|run|seed|chunk|shard)(?:[\W_]*[0-9]+|[\W_]+[a-z])",
    re.IGNORECASE,
)
# fewer names in common are no sign: cat/images, dog/images
MIN_COMMON = 2


def check_repeats(listing: Listing, folder: str, known: Collection[str], notes: list[str]) -> None:
    """Raise DataError where the would-be class folders of `folder` are rather pieces of a data set.

    The tree alone can't tell fold0/cat, fold1/cat from cat/2021, dog/2021. It is refused where the names can: all of
    the outer ones are pieces' (fold0, split_1, or a split's), or the inner ones are splits with the same subfolders.
    Elsewhere notes takes a line that says which were taken for classes. known: classes that a bundle has.
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
            f"it is unclear what the classes are: {some(list(tree), 3)} in {folder} each hold {some(inner, 3)}. If "
            f"these are the classes, give one of the folders as DATA, or call them train, val and test; if the outer "
            "ones are, put their images right into them."
        )
    if len(common) >= MIN_COMMON and not all(split_of(name) for name in common):
        notes.append(
            f"the classes are the outer folders ({some(list(tree), 3)}), not the subfolders that each of them has "
            f"({some(common, 3)})"
        )


def _inside(listing: Listing, folder: str) -> dict[str, str]:
    try:
        return listing.labelled(folder)
    except DataError:
        # broken links in class folders are passed over; whatever else is wrong is told when the images are listed
        return {}


def _paths(folder: str, names: Collection[str]) -> list[str]:
    return [os.path.join(folder, name) for name in names]  # noqa: PTH118


def _common(tree: Mapping[str, Collection[str]]) -> list[str]:
    """Names that every folder of `tree` holds."""
    return sorted(frozenset.intersection(*(frozenset(inner) for inner in tree.values())))


def _common_below_splits(listing: Listing, tree: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Names that are below every folder of `tree`, in splits, as in a/train/cat, b/train/cat; none if there are few."""
    if not all(inner and all(split_of(name) for name in inner) for inner in tree.values()):
        return []
    below = {f"{outer}/{name}": _inside(listing, path) for outer, inner in tree.items() for name, path in inner.items()}
    common = _common(below)
    return common if len(common) >= MIN_COMMON else []
