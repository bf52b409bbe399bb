"""Opens images that lie in no class folders, which can be looked at and not be trained on (no torch here)."""

from __future__ import annotations

import os
from pathlib import Path

from vivace.data.layouts.assemble import Items, assemble
from vivace.data.layouts.folders import manifests_in
from vivace.data.layouts.listing import Listing
from vivace.data.layouts.splitnames import SPLIT_ORDER, split_of
from vivace.data.splits import DataSource
from vivace.data.text import first_few

__all__ = ["UNLABELLED", "open_unlabelled"]

UNLABELLED = "no label"


def open_unlabelled(root: Path, *, follow_links: bool = False) -> DataSource | None:
    """The images of a folder without class folders, all of the class "no label"; None where there are class folders.

    Images in folders called like splits, train/ and test/, are those of the splits; all others are "train".
    Raises DataError if the folder can't be read.
    """
    top = os.fspath(root.resolve())
    listing = Listing(top, follow_links)
    folders = listing.labelled(top)
    items: dict[str, Items] = {}
    if not folders and listing.has_files(top):
        items["train"] = [(file, UNLABELLED) for file in listing.images(top)]
    elif folders and not listing.has_files(top):
        for name, path in folders.items():
            split = split_of(name)
            if split is None or listing.labelled(path):
                return None
            items.setdefault(split, []).extend((file, UNLABELLED) for file in listing.images(path))
    if not items:
        return None
    notes = ["there are no class folders: images are looked at without labels"]
    if tables := manifests_in(top):
        notes.append(f"for labels too, give the table of labels as `data`: {first_few(tables, 3)}")
    return assemble(
        root.name or str(root),
        root.resolve(),
        {split: items[split] for split in SPLIT_ORDER if split in items},
        require_train=False,
        notes=notes,
        ignored=listing.ignored,
    )
