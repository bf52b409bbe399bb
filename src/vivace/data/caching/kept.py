"""Restores a data source from the cache alone, to resume a run whose files can't be opened any more."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vivace.data.caching.files import StoredCache, read_cache
from vivace.data.caching.index import DamagedFiles, folders_with
from vivace.data.preprocess import Preprocess
from vivace.data.splits import DataSource, Split

__all__ = ["source_in_cache"]


def source_in_cache(fingerprint: str, preprocess: Preprocess, cache_dir: Path) -> DataSource | None:
    """The source of the images in the cache with this fingerprint; None if there is no such undamaged cache.

    Its paths are where the files used to be. Images that the audit left out are not included.
    """
    for folder in folders_with(fingerprint, cache_dir / "images" / "-"):
        with contextlib.suppress(DamagedFiles):
            found = read_cache(folder, preprocess)
            if found is not None and found.fingerprint == fingerprint:
                return _source_of(found, preprocess)
    return None


def _source_of(cache: StoredCache, preprocess: Preprocess) -> DataSource:
    root, name = cache.origin
    splits = {
        key: Split(
            name=key,
            names=split.names,
            labels=split.labels_N,
            paths=tuple(os.path.join(root, item) for item in split.names),  # noqa: PTH118
        )
        for key, split in cache.splits.items()
    }
    return DataSource(
        name=name,
        classes=cache.classes,
        label_sets=cache.label_sets,
        splits=splits,
        root=Path(root) if root else None,
        channels=preprocess.channels,
    )
