"""A folder of class folders, or of train/, val/ and test/ with class folders in each."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vivace.data.decode import EXTENSIONS, REFUSED_EXTENSIONS
from vivace.data.splits import DataSource, Split
from vivace.errors import DataError

__all__ = ["SPLIT_NAMES", "check_same_classes", "open_folder"]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass
class _Listing:
    """What was found below one class folder."""

    files: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def open_folder(root: Path, *, require_train: bool = True) -> DataSource:
    """The data source of a folder. Raises DataError for what faults a folder can have."""
    root = root.resolve()
    folders = _subfolders(root, root)
    splits = _split_folders(root, folders)
    if splits and require_train and "train" not in splits:
        raise DataError(
            f"there is no train folder in {root}, only {', '.join(sorted(folders))}. "
            "Put the training images into train/."
        )
    if splits:
        return _open_splits(root, splits)
    name = "train" if require_train else "test"
    classes, split, ignored = _read_split(root, root, name)
    return DataSource(name=root.name, classes=classes, splits={name: split}, root=root, ignored=ignored)


def _split_folders(root: Path, folders: Mapping[str, str]) -> dict[str, str]:
    """Split → folder; empty where the folders are classes.

    A class may be called "train", as in a data set of vehicles: beside classes it is a split only if it has subfolders.
    """
    splits: dict[str, str] = {}
    for name, path in folders.items():
        split = SPLIT_NAMES.get(name.lower())
        if split in splits:
            twin = os.path.basename(splits[split])  # noqa: PTH119
            raise DataError(f"two folders are the split {split}: {twin!r} and {name!r} in {root}. Merge them.")
        if split is not None:
            splits[split] = path
    if len(splits) < len(folders) and not ("train" in splits and _subfolders(Path(splits["train"]), root)):
        return {}
    return splits


def check_same_classes(classes: Mapping[str, Iterable[str]], where: Path) -> None:
    """Raise DataError unless every split has the classes of the first."""
    first, *others = classes
    for name in others:
        missing = sorted(set(classes[first]) - set(classes[name]))
        extra = sorted(set(classes[name]) - set(classes[first]))
        if missing or extra:
            parts = [f"{name} lacks {', '.join(missing)}"] if missing else []
            parts += [f"only {name} has {', '.join(extra)}"] if extra else []
            raise DataError(
                f"{first} and {name} have different classes in {where}: {'; '.join(parts)}. Make them the same."
            )


def _open_splits(root: Path, folders: dict[str, str]) -> DataSource:
    found = {name: _read_split(root, Path(folders[name]), name) for name in ("train", "val", "test") if name in folders}
    check_same_classes({name: classes for name, (classes, _, _) in found.items()}, root)
    classes = next(iter(found.values()))[0]
    ignored = tuple(path for _, _, ignored in found.values() for path in ignored)
    return DataSource(
        name=root.name,
        classes=classes,
        splits={name: split for name, (_, split, _) in found.items()},
        root=root,
        ignored=ignored,
    )


def _read_split(root: Path, folder: Path, name: str) -> tuple[tuple[str, ...], Split, tuple[str, ...]]:
    """(classes, split, ignored files) of a folder of class folders."""
    by_class: dict[str, str] = {}
    ignored: list[str] = []
    for raw, path in _subfolders(folder, root, ignored).items():
        # the same name may be spelled in composed or decomposed characters: one class all the same
        label = unicodedata.normalize("NFC", raw)
        if label in by_class:
            raise DataError(
                f"two class folders have the same name in other Unicode forms: {label!r} in {folder}. Merge them."
            )
        by_class[label] = path
    if not by_class:
        raise DataError(f"there are no class folders in {folder}. Put the images into one folder per class.")
    classes = tuple(sorted(by_class))
    prefix = len(os.fspath(root)) + 1
    paths: list[str] = []
    labels: list[int] = []
    for index, label in enumerate(classes):
        listing = _Listing()
        _walk(by_class[label], os.fspath(root), listing, (os.path.realpath(by_class[label]),))
        if not listing.files:
            raise DataError(f"a class folder holds no images: {by_class[label]}. Fill it or remove it.")
        listing.files.sort()
        paths += listing.files
        labels += [index] * len(listing.files)
        ignored += listing.ignored
    split = Split(
        name=name,
        names=tuple(path[prefix:] for path in paths),
        labels=np.asarray(labels, dtype=np.int64),
        paths=tuple(paths),
    )
    return classes, split, tuple(path[prefix:] for path in ignored)


def _subfolders(folder: Path, root: Path, loose: list[str] | None = None) -> dict[str, str]:
    """Visible subfolders by name, sorted; files beside them are added to `loose`; a link out of the root is refused."""
    found = {}
    for entry in _scan(os.fspath(folder)):
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if entry.is_symlink():
            _check_link(entry.path, os.fspath(root), ())
        if entry.is_dir():
            found[entry.name] = entry.path
        elif loose is not None:
            loose.append(entry.path)
    return dict(sorted(found.items()))


def _walk(folder: str, root: str, listing: _Listing, parents: tuple[str, ...]) -> None:
    for entry in _scan(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            _check_link(entry.path, root, parents)
        if entry.is_dir():
            _walk(entry.path, root, listing, (*parents, os.path.realpath(entry.path)))
            continue
        extension = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (60,000 Path objects are a second's work)
        if extension in EXTENSIONS:
            # reading a pipe would wait for ever
            if not entry.is_file():
                raise DataError(f"not a plain file: {entry.path}, a pipe, socket or device. Remove it.")
            # 1 µs a file; effective rights are those that reading will have
            if not os.access(entry.path, os.R_OK, effective_ids=True):
                raise DataError(f"the file can't be read: {entry.path}. Check its rights.")
            listing.files.append(entry.path)
        elif extension in REFUSED_EXTENSIONS:
            raise DataError(f"the format is not allowed: {entry.path}. Convert it to JPEG or PNG, or remove it.")
        else:
            listing.ignored.append(entry.path)


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"the folder can't be read: {folder} ({error.strerror}). Check its rights.") from None


def _check_link(path: str, root: str, parents: tuple[str, ...]) -> None:
    target = os.path.realpath(path)
    if not os.path.exists(target):  # noqa: PTH110
        raise DataError(f"a link leads nowhere or in a circle: {path}. Remove it.")
    if not (target + os.sep).startswith(os.path.realpath(root) + os.sep):
        raise DataError(f"a link leads out of the data set: {path} → {target}. Copy the files in, or remove it.")
    if target in parents:
        raise DataError(f"a link leads in a circle: {path} → {target}. Remove it.")
