"""Opens DATA, a name, a folder, a manifest, an archive or an object, as a data source (no torch here)."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vivace.cachedir import clear_leftovers, default_cache_dir
from vivace.data.labelsets import identity_sets, with_columns
from vivace.data.layouts import archives, catalog, folders, hub, manifests, shards, unlabelled
from vivace.data.objects.source import open_object
from vivace.data.place import AnyData, Data
from vivace.data.rawfiles import with_kind_of_files
from vivace.data.splits import DataSource, check_source, renumbered
from vivace.data.text import case_hint, count_of, first_few
from vivace.errors import DataError, nearest, nearest_path

__all__ = ["open_images", "open_source"]


def open_source(
    data: AnyData,
    *,
    cache_dir: Path | None = None,
    require_train: bool = True,
    classes: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    multi_label: bool = False,
    pixels: str | None = None,
) -> DataSource:
    """The data source behind a name, a folder, a manifest or an archive, or of an object.

    require_train: False for evaluation, where one split of any name is enough. Images without a split are put into
    "train". classes: the classes of a bundle, in its order; labels are numbered by them, and images of other classes
    are left out. multi_label: with `classes`, whether an image has a set of them: its other labels are left out, and it
    stays. pixels: as of `Data`, where the data do not say. What was left out or guessed is in the source's `notes`.
    progress: called with (images read, images in all) of an object that is read to know what it holds.
    Raises DataError, ArchiveError or DownloadError.
    """
    data = Data.of(data)
    asked = data.multi_label
    if classes is not None and asked is None:
        data = dataclasses.replace(data, multi_label=multi_label)
    if pixels not in (None, "uint8") and data.pixels is None:
        data = dataclasses.replace(data, pixels=pixels)  # type: ignore[arg-type]
    clear_leftovers(cache_dir or default_cache_dir())
    if data.cache is False and (classes is not None or not data.is_object):
        what = "training alone" if data.is_object else "data sets in Python, whose items may be random"
        raise DataError(f"cache=False is for {what}: got {data}. Leave it out.")
    if isinstance(data.where, DataSource):
        source = data.where
    elif data.is_object:
        source = open_object(data, require_train=require_train, progress=progress)
    else:
        source = with_kind_of_files(_at_place(data, cache_dir, require_train, classes), data.pixels)
    if asked and source.label_sets is None:
        raise DataError(
            f"only a table or an object can give an image several labels: got `data.multi_label=True` for "
            f"{source.name}. Leave it out, or give a table."
        )
    if classes is not None:
        source = (_with_labels if multi_label else _with_classes)(source, tuple(classes))
    check_source(source, require_train=require_train and classes is None)
    return source


def _at_place(data: Data, cache_dir: Path | None, require_train: bool, classes: Sequence[str] | None) -> DataSource:
    """The data source behind a name or a path."""
    text = str(data)
    path = _path_of(text)
    if path.is_dir():
        source = hub.open_hub(path, data, cache_dir, require_train=require_train) or _folder(
            path, data, require_train, classes
        )
    elif path.is_file() and shards.holds_pixels(path, data.image_column):
        source = _of_file(
            path, shards.open_shards({"train": [path]}, path.stem, data, cache_dir, require_train=require_train)
        )
    elif path.is_file() and manifests.is_manifest(path):
        source = _of_file(path, _manifest(path, data, require_train))
    elif path.is_file() and archives.is_archive(path):
        source = _of_file(path, _archive(path, data, cache_dir, require_train))
    elif path.exists():
        raise DataError(
            f"`data` is not a data set: {path}. Give a folder of class folders, a .csv, .tsv, .jsonl or .parquet "
            "manifest, a .zip or .tar archive, or the name of a data set."
        )
    elif text.lower() in catalog.CATALOG:
        data.refuse_columns()
        source = catalog.open_named(text.lower(), Path(data.data_root) if data.data_root else None, cache_dir)
    else:
        raise DataError(
            f"`data` was not found: got {text!r}, which is not a file, a folder or a known name."
            f"{nearest_path(path, _is_data, known=catalog.CATALOG)} Give a folder of class folders, a .csv, .tsv, "
            f".jsonl or .parquet manifest, a .zip or .tar archive, or one of {', '.join(sorted(catalog.CATALOG))}."
        )
    return source


def open_images(data: AnyData, *, cache_dir: Path | None = None) -> DataSource | None:
    """The images of a folder or an archive that has no class folders, without labels; None for all other data.

    What can be trained on is `open_source`'s. Raises DataError or ArchiveError.
    """
    data = Data.of(data)
    if data.is_object or data.multi_label:
        return None
    path = _path_of(str(data))
    if path.is_dir():
        source = unlabelled.open_unlabelled(path, follow_links=data.follow_links)
    elif path.is_file() and archives.is_archive(path):
        source = unlabelled.open_unlabelled(archives.unpacked(path, cache_dir))
        source = source and dataclasses.replace(source, name=path.resolve().name.split(".")[0])
    else:
        return None
    return source and with_kind_of_files(source, data.pixels)


def _is_data(path: Path) -> bool:
    """Whether a path may be data, going by its name and kind."""
    return not path.name.startswith(".") and (path.is_dir() or manifests.is_manifest(path) or archives.is_archive(path))


def _folder(path: Path, data: Data, require_train: bool, classes: Sequence[str] | None) -> DataSource:
    data.refuse_columns()
    return folders.open_folder(path, require_train=require_train, known=classes or (), follow_links=data.follow_links)


def _manifest(path: Path, data: Data, require_train: bool, *, inside_only: bool = False) -> DataSource:
    return manifests.open_manifest(
        path,
        require_train=require_train,
        inside_only=inside_only,
        follow_links=data.follow_links,
        image_column=data.image_column,
        label_column=data.label_column,
        multi_label=data.multi_label,
    )


def _archive(path: Path, data: Data, cache_dir: Path | None, require_train: bool) -> DataSource:
    root = archives.unpacked(path, cache_dir)
    try:
        source = _unpacked(root, data, cache_dir, require_train)
    except DataError as error:
        # name the archive that the user gave, not the cache folder it was unpacked to
        parent = (cache_dir or default_cache_dir()) / archives.FOLDER
        held = parent / root.relative_to(parent).parts[0]
        raise DataError(str(error).replace(str(held.resolve()), str(path)).replace(str(held), str(path))) from None
    return dataclasses.replace(source, name=path.resolve().name.split(".")[0])


def _unpacked(root: Path, data: Data, cache_dir: Path | None, require_train: bool) -> DataSource:
    # unpacking refuses links, so there are none to follow
    data = dataclasses.replace(data, follow_links=False)
    source = hub.open_hub(root, data, cache_dir, require_train=require_train)
    if source is None:
        tables = [entry for entry in sorted(root.iterdir()) if entry.is_file() and manifests.is_manifest(entry)]
        if len(tables) == 1:
            source = _manifest(tables[0], data, require_train, inside_only=True)
        else:
            source = _folder(root, data, require_train, ())
    return source


def _of_file(path: Path, source: DataSource) -> DataSource:
    return dataclasses.replace(source, file=path)


def _path_of(text: str) -> Path:
    """DATA as a path for which `exists` does not raise."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"`data` can't be read: got {text[:200]!r} ({reason}). Check the path and its permissions."
        ) from None
    return path


def _with_classes(source: DataSource, classes: tuple[str, ...]) -> DataSource:
    """The source with labels numbered by `classes`, without images of other classes."""
    if source.label_sets is not None:
        raise DataError(
            f"the images of {source.name} have sets of labels, and the bundle gives each image one class. Give data "
            "with one class an image, or a bundle of several labels."
        )
    known = {unicodedata.normalize("NFC", name): index for index, name in enumerate(classes)}
    numbers = [known.get(unicodedata.normalize("NFC", name), -1) for name in source.classes]
    strange = [name for name, number in zip(source.classes, numbers, strict=True) if number < 0]
    mapping = np.asarray(numbers, dtype=np.int64)
    splits = {key: renumbered(split, mapping[split.labels]) for key, split in source.splits.items()}
    splits = {key: split for key, split in splits.items() if len(split)}
    if strange and not splits:
        hint = case_hint(strange, classes)
        raise DataError(
            f"the data and the bundle have no class in common: got {first_few(strange, 3)}{hint}."
            f"{'' if hint else nearest(strange[0], classes)} Give classes of the bundle: {first_few(classes, 20)}."
        )
    notes = list(source.notes)
    if strange:
        count = sum(map(len, source.splits.values())) - sum(map(len, splits.values()))
        notes.append(
            f"left out {count_of(count, 'image')} whose classes are not in the bundle: "
            f"{first_few(strange)}{case_hint(strange, classes)}"
        )
    return dataclasses.replace(source, classes=classes, splits=splits, notes=tuple(notes))


def _with_labels(source: DataSource, classes: tuple[str, ...]) -> DataSource:
    """The source with sets of these labels, in their order; an image with none of them stays, with an empty set."""
    label_sets = identity_sets(len(source.classes)) if source.label_sets is None else source.label_sets
    known = {unicodedata.normalize("NFC", name): index for index, name in enumerate(source.classes)}
    columns = [known.get(unicodedata.normalize("NFC", name)) for name in classes]
    strange = [name for index, name in enumerate(source.classes) if index not in columns]
    if len(strange) == len(source.classes):
        raise DataError(
            f"the data and the bundle have no label in common: got {first_few(strange, 3)}"
            f"{case_hint(strange, classes)}. Give labels of the bundle: {first_few(classes, 20)}."
        )
    label_sets, numbers_M = with_columns(label_sets, columns)
    splits = {key: renumbered(split, numbers_M[split.labels]) for key, split in source.splits.items()}
    notes = list(source.notes)
    if strange:
        notes.append(
            f"left out {count_of(len(strange), 'label')} not in the bundle: {first_few(strange)}"
            f"{case_hint(strange, classes)}; their images stay, without them"
        )
    return dataclasses.replace(source, classes=classes, label_sets=label_sets, splits=splits, notes=tuple(notes))
