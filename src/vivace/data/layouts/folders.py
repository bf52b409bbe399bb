"""Opens a folder of class folders, or one with train/, val/ and test/ of class folders, even inside wrapper folders."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vivace.data.layouts.archives import is_archive
from vivace.data.layouts.assemble import Items, assemble
from vivace.data.layouts.listing import Listing, scan
from vivace.data.layouts.repeats import check_repeats
from vivace.data.layouts.splitnames import SPLIT_ORDER, split_of
from vivace.data.layouts.tables import names_any
from vivace.data.splits import DataSource
from vivace.data.text import count_of, first_few
from vivace.errors import DataError

__all__ = ["ClassFolders", "manifests_in", "open_folder"]

# nested wrapper folders, as in dataset/dataset/images/…
MAX_WRAPPERS = 6
MANIFESTS = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass
class ClassFolders:
    """What was understood of a folder."""

    listing: Listing
    top: str
    """The folder below all wrappers."""
    splits: dict[str, str] = field(default_factory=dict)
    """Split → the folder that holds its class folders. Empty if `top` itself holds the class folders."""
    notes: list[str] = field(default_factory=list)


def open_folder(
    root: Path, *, require_train: bool = True, known: Sequence[str] = (), follow_links: bool = False
) -> DataSource:
    """The data source of a folder of class folders.

    known: class names (of a bundle) that are never taken for wrapper folders. Raises DataError if the folder has no
    training images, no class folders, ambiguous splits or classes, or can't be read.
    """
    found = understand(root.resolve(), known=known, follow_links=follow_links)
    listing, top = found.listing, found.top
    if found.splits and require_train and "train" not in found.splits:
        raise DataError(
            f"there is no train folder in {top}, only {first_few(sorted(listing.subfolders(top)))}. "
            "Put the training images into train/."
        )
    items: dict[str, Items] = {}
    first = next((found.splits[split] for split in SPLIT_ORDER if split in found.splits), top)
    check_repeats(listing, first, known, found.notes)
    if found.splits:
        for split in SPLIT_ORDER:
            if split in found.splits:
                items[split] = read_classes(found.splits[split], listing, found.notes)
    else:
        items = _read_class_first(found) or {"train": read_classes(top, listing, found.notes)}
    if listing.broken:
        found.notes.append(
            f"skipped {count_of(len(listing.broken), 'broken link')}: {first_few(sorted(listing.broken))}"
        )
    if require_train and len({label for _, label in items.get("train", [])}) < 2:
        _hint_at_manifests(top)
    return assemble(
        root.name or str(root),
        root.resolve(),
        items,
        require_train=require_train,
        notes=found.notes,
        ignored=listing.ignored,
    )


def understand(root: Path, *, known: Sequence[str] = (), follow_links: bool = False) -> ClassFolders:
    """Which folders below `root` are splits, wrappers and classes. Raises DataError if that is ambiguous."""
    listing = Listing(os.fspath(root), follow_links)
    found = ClassFolders(listing, _unwrapped(listing, os.fspath(root), frozenset(known)))
    roles = {name: split for name in listing.subfolders(found.top) if (split := split_of(name)) is not None}
    if roles:
        _decide(found, roles, frozenset(known))
    return found


def _unwrapped(listing: Listing, folder: str, known: frozenset[str]) -> str:
    """The folder below all wrappers: downloads often put everything into a single subfolder, or several nested ones."""
    for _ in range(MAX_WRAPPERS):
        inner = listing.labelled(folder)
        if len(inner) != 1 or listing.has_files(folder):
            break
        ((name, path),) = inner.items()
        # a download may be called training-data and hold train/ and test/
        split = split_of(name) is not None and not _are_splits(listing.labelled(path))
        if name in known or split or listing.has_files(path):
            break
        folder = path
    return folder


def _are_splits(names: Iterable[str]) -> bool:
    """Whether all names refer to splits, and to more than one."""
    roles = {split_of(name) for name in names}
    return len(roles) > 1 and None not in roles


def _inner(listing: Listing, folder: str, known: frozenset[str]) -> str:
    """A split's folder below its wrappers, as in seg_train/seg_train or train/images; `known`: the classes of train."""
    for _ in range(MAX_WRAPPERS):
        inner = listing.labelled(folder)
        if len(inner) != 1 or listing.has_files(folder):
            break
        ((name, path),) = inner.items()
        own = os.path.basename(folder)  # noqa: PTH119
        same = name.casefold() == own.casefold() or (split_of(name) == split_of(own) is not None)
        if name in known or not (same or listing.labelled(path)):
            break
        folder = path
    return folder


def _decide(found: ClassFolders, roles: Mapping[str, str], known: frozenset[str]) -> None:
    """Fill `found.splits` if the folders named like splits are splits, which hold the same class folders.

    A class may be called "train", "freight train" or "test tube"; it holds images, and other classes are beside it.
    known: the classes of a bundle.
    """
    listing, folders = found.listing, found.listing.labelled(found.top)
    empty = [name for name in roles if name not in folders]
    roles = {name: split for name, split in roles.items() if name in folders}
    others = [name for name in folders if name not in roles]
    inner = {name: _inner(listing, folders[name], known) for name, split in roles.items() if split == "train"}
    known |= {label for path in inner.values() for label in listing.labelled(path)}
    inner |= {name: _inner(listing, folders[name], known) for name in roles if name not in inner}
    classes = {name: frozenset(listing.labelled(path)) for name, path in inner.items()}
    if not any(classes.values()):
        if not others and (len(set(roles.values())) > 1 or len(folders) == 1):
            raise _unlabelled(found.top, sorted(roles))
        return
    if others and "train" not in roles.values():
        return
    if len(roles) == 1 and others:
        _check_not_a_class(found, next(iter(roles)), known, others)
    for name, split in roles.items():
        if split == "train" and not classes[name]:
            raise _unlabelled(found.top, [name])
        if not classes[name] or (split != "train" and known and not classes[name] & known and len(classes[name]) == 1):
            found.notes.append(f"skipped {name}/, which has no labels (no class folders of train)")
        elif split in found.splits:
            twin = Path(found.splits[split]).relative_to(found.top).parts[0]
            raise DataError(
                f"two folders are the split {split}: {twin!r} and {name!r} in {found.top}. Merge or rename them."
            )
        else:
            found.splits[split] = inner[name]
    found.notes += [f"skipped {name}/, which holds no images" for name in empty]
    for name in others:
        same = len(frozenset(listing.labelled(folders[name])) & known) > 1
        reason = "has the same class folders, but is not named like a split: rename it val/ or test/ to use it"
        found.notes.append(f"skipped {name}/, which {reason if same else 'is not a split'}")
    listing.skip_files(found.top)


def _check_not_a_class(found: ClassFolders, name: str, known: frozenset[str], others: list[str]) -> None:
    """Raise DataError if the one folder named like a split may just as well be a class beside `others`."""
    folders = found.listing.labelled(found.top)
    twins = [other for other in others if len(frozenset(found.listing.labelled(folders[other])) & known) > 1]
    if twins or len(others) > 1:
        raise DataError(
            f"it is unclear whether {name!r} is a split or a class: beside it in {found.top} are "
            f"{first_few(twins or others)}{' with the same subfolders' if twins else ''}. If it is a split, rename the "
            f"others val/ or test/, or move them away; if it is a class, rename it or move its subfolders away."
        )


def _unlabelled(top: str, names: Sequence[str]) -> DataError:
    tables = manifests_in(top, [name for name in names if split_of(name) == "train"] or names)
    if not tables:
        tables = [f"{name}/{table}" for name in names for table in manifests_in(os.path.join(top, name))]  # noqa: PTH118
    hint = f"the table of labels as `data`: {first_few(tables, 3)}" if tables else "a CSV of their labels"
    return DataError(
        f"the folders look like splits and hold no class folders: {first_few(names)} in {top}. "
        f"Put the images of each into one folder per class, or give {hint}."
    )


def manifests_in(top: str, folders: Sequence[str] = ()) -> list[str]:
    """Names of the tables in a folder, without sample submissions.

    If some of them name files of `folders`, only those.
    """
    names = sorted(entry.name for entry in scan(top) if entry.name.lower().endswith(MANIFESTS))
    tables = [name for name in names if "submission" not in name.lower()]
    files = {entry.name for name in folders for entry in scan(os.path.join(top, name))}  # noqa: PTH118
    # many tables omit the extension
    files |= {os.path.splitext(file)[0] for file in files}  # noqa: PTH122
    return [name for name in tables if files and names_any(Path(top, name), files)] or tables


def _hint_at_manifests(top: str) -> None:
    """Raise DataError if a table beside the images may hold the labels; called for fewer than two classes."""
    if tables := manifests_in(top):
        raise DataError(
            f"there are fewer than two class folders in {top}. Give the table of labels as `data`: "
            f"{first_few(tables, 3)}."
        )


def _read_class_first(found: ClassFolders) -> dict[str, Items]:
    """Items per split if every class folder holds split folders, as in cat/train and cat/test; else empty."""
    listing, top = found.listing, found.top
    tree = {name: listing.labelled(path) for name, path in listing.labelled(top).items()}
    roles = {split_of(inner) for folders in tree.values() for inner in folders}
    if len(tree) < 2 or not all(tree.values()) or None in roles or len(roles) < 2 or "train" not in roles:
        return {}
    if any(listing.has_files(os.path.join(top, name)) for name in tree):  # noqa: PTH118
        return {}
    items: dict[str, Items] = {}
    for name, folders in tree.items():
        label = unicodedata.normalize("NFC", name)
        for inner, path in folders.items():
            items.setdefault(str(split_of(inner)), []).extend((file, label) for file in listing.images(path))
    found.notes.append(f"every class folder holds splits: {first_few(sorted({i for f in tree.values() for i in f}))}")
    return items


def read_classes(folder: str, listing: Listing, notes: list[str]) -> Items:
    """(file, class) of all images in the class folders of `folder`, sorted by class; empty class folders are noted."""
    by_class: dict[str, str] = {}
    for raw, path in listing.subfolders(folder).items():
        # macOS decomposes accented characters and other systems don't: both spellings are one class
        label = unicodedata.normalize("NFC", raw)
        if label in by_class:
            raise DataError(
                f"two class folders differ only in Unicode normalization: {label!r} in {folder}. Merge them."
            )
        by_class[label] = path
    listing.skip_files(folder)
    if not by_class:
        if packed := sorted(entry.name for entry in scan(folder) if is_archive(Path(entry.name))):
            raise DataError(
                f"there are no class folders in {folder}, but archives: {first_few(packed, 3)}. Unpack each "
                "into a folder of its name, and give the folder that holds them."
            )
        raise DataError(f"there are no class folders in {folder}. Put the images into one folder per class.")
    if _are_splits(by_class):
        raise _unlabelled(folder, sorted(by_class))
    items: Items = []
    empty = []
    for label, path in sorted(by_class.items()):
        files = listing.images(path)
        items += [(file, label) for file in files]
        if not files:
            empty.append(label)
    if empty:
        notes.append(f"skipped {count_of(len(empty), 'empty class folder')}: {first_few(empty)}")
    return items
