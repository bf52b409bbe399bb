"""Opens folders in the layouts of Hugging Face and Roboflow: metadata tables beside the images, or parquet shards."""

from __future__ import annotations

import os
from pathlib import Path

from vivace.data.layouts.assemble import Items, assemble
from vivace.data.layouts.badrows import Unusable, check_rows, with_bad_rows
from vivace.data.layouts.listing import Listing, check_inside, scan
from vivace.data.layouts.manifests import read_manifest
from vivace.data.layouts.reading import look_at, reading_of
from vivace.data.layouts.shards import holds_pixels, open_shards
from vivace.data.layouts.splitnames import is_system, split_of
from vivace.data.place import Data
from vivace.data.splits import DataSource

__all__ = ["open_hub"]

# the last one is Roboflow's: the same layout with one-hot columns
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "_classes.csv")


def open_hub(root: Path, data: Data, cache_dir: Path | None, *, require_train: bool = True) -> DataSource | None:
    """The data source of such a folder, with the columns and link rule of `data`; None if it has another layout.

    Raises DataError.
    """
    root = root.resolve()
    tables = _metadata(root, "train", data.follow_links)
    if tables and ("train" in tables or not require_train):
        items: dict[str, Items] = {}
        # the tables together: by chance one may hold no image of several labels
        seen = look_at(tables.values(), image_column=data.image_column, label_column=data.label_column)
        reading = reading_of(seen, data.multi_label)
        notes = [*reading.notes]
        bad: list[Unusable] = []
        for split, table in tables.items():
            for name, rows in read_manifest(
                table,
                split,
                notes,
                bad,
                # the user did not name this table, so it may not refer to files elsewhere
                inside_only=True,
                follow_links=data.follow_links,
                image_column=data.image_column,
                label_column=data.label_column,
                reading=reading,
            ).items():
                items.setdefault(name, []).extend(rows)
        check_rows(items, bad, str(root), require_train=require_train)
        return with_bad_rows(assemble(root.name, root, items, require_train=require_train, notes=notes), bad)
    shards = _shards(root, "train", data.follow_links)
    if shards:
        return open_shards(shards, root.name, data, cache_dir, require_train=require_train)
    return None


def _metadata(root: Path, default: str, follow_links: bool) -> dict[str, Path]:
    """Split → its metadata table, in the split folders or else in the root; empty if there are class folders."""
    listing = Listing(os.fspath(root), follow_links)
    folders = {split_of(name): Path(path) for name, path in listing.subfolders(os.fspath(root)).items()}
    found = {split: table for split, folder in folders.items() if split and (table := _table_in(folder))}
    if not found and (table := _table_in(root)):
        found, folders = {default: table}, {default: root}
    if any(len(listing.labelled(os.fspath(folders[split]))) > 1 for split in found):
        return {}
    if not follow_links:
        for table in found.values():
            check_inside(os.fspath(table), os.fspath(root))
    return found


def _table_in(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _shards(root: Path, default: str, follow_links: bool) -> dict[str, list[Path]]:
    """Split → parquet files with images in the root or in data/; empty if a parquet file there holds no images."""
    for folder in (root, root / "data"):
        if not folder.is_dir():
            continue
        files = sorted(
            Path(entry.path)
            for entry in scan(os.fspath(folder))
            if entry.name.lower().endswith(".parquet") and not is_system(entry.name) and entry.is_file()
        )
        if files and all(holds_pixels(path) for path in files):
            shards: dict[str, list[Path]] = {}
            for path in files:
                if not follow_links:
                    check_inside(os.fspath(path), os.fspath(root))
                shards.setdefault(split_of(path.stem) or default, []).append(path)
            return shards
    return {}
