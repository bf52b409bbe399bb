"""What DATA may be: a name, a folder, a manifest or an archive, and the data source behind it (no torch here)."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vivace.data import archives, catalog, folders, manifests
from vivace.data.splits import DataSource, check_source
from vivace.errors import DataError, nearest

__all__ = ["open_source"]


def open_source(
    data: str | Path,
    *,
    data_root: Path | None = None,
    cache_dir: Path | None = None,
    require_train: bool = True,
    classes: Sequence[str] | None = None,
) -> DataSource:
    """The data source behind a name, a folder, a manifest or an archive.

    require_train: False for evaluation, where one split of any name is enough and a plain folder of class folders
    counts as "test". classes: those of a bundle, in its order; labels then follow them and other classes are refused.
    Raises DataError, ArchiveError or DownloadError.
    """
    text = str(data)
    path = _path_of(text)
    if path.is_dir():
        source = folders.open_folder(path, require_train=require_train)
    elif path.is_file() and manifests.is_manifest(path):
        source = manifests.open_manifest(path, require_train=require_train)
    elif path.is_file() and archives.is_archive(path):
        source = archives.open_archive(path, cache_dir, require_train=require_train)
    elif path.exists():
        raise DataError(
            f"DATA is no data set: {path}. Give a folder of class folders, a .csv, .jsonl or .parquet manifest, "
            "a .zip or .tar archive, or a data set's name."
        )
    elif text.lower() in catalog.CATALOG:
        source = catalog.open_named(text.lower(), data_root, cache_dir)
    else:
        raise DataError(
            f"DATA was not found: got {text!r}, which is no file, no folder and no known name."
            f"{nearest(text, catalog.CATALOG)} Give a folder of class folders, a .csv, .jsonl or .parquet manifest, "
            f"a .zip or .tar archive, or one of {', '.join(sorted(catalog.CATALOG))}."
        )
    source = source if classes is None else _with_classes(source, tuple(classes))
    check_source(source, require_train=require_train and classes is None)
    return source


def _path_of(text: str) -> Path:
    """DATA as a path that may be asked whether it exists."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"DATA can't be read: got {text[:200]!r} ({reason}). Check the path and its rights.") from None
    return path


def _with_classes(source: DataSource, classes: tuple[str, ...]) -> DataSource:
    """The source with its labels numbered as in `classes`."""
    known = {unicodedata.normalize("NFC", name): index for index, name in enumerate(classes)}
    numbers = []
    for name in source.classes:
        index = known.get(unicodedata.normalize("NFC", name))
        if index is None:
            raise DataError(
                f"the bundle does not know a class of the data: got {name!r}.{nearest(name, classes)} "
                f"It knows {', '.join(classes[:20])}{' …' if len(classes) > 20 else ''}."
            )
        numbers.append(index)
    mapping = np.asarray(numbers, dtype=np.int64)
    splits = {key: dataclasses.replace(split, labels=mapping[split.labels]) for key, split in source.splits.items()}
    return dataclasses.replace(source, classes=classes, splits=splits)
