"""Builds a cache: decodes every image once, audits them, and leaves out the unusable ones."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vivace.cachedir import INDEX
from vivace.data.audit import audit_images
from vivace.data.caching.files import allocate, boot_id, keep_rows, write_splits
from vivace.data.caching.items import decode_items
from vivace.data.labelsets import stored_sets
from vivace.data.preprocess import Preprocess
from vivace.data.splits import DataSource, Split
from vivace.data.workers import Decoded, decode_files, digest_of, is_one_colour
from vivace.errors import DataError
from vivace.files import atomic_folder

__all__ = ["build", "origin_of"]

# suffixes of a split's files in a cache
ENDINGS = (".npy", ".labels.npy", ".digests.npy")


def build(
    folder: Path,
    source: DataSource,
    preprocess: Preprocess,
    signature: str,
    kernels: Path,
    num_workers: int | None,
    progress: Callable[[int, int], None],
) -> None:
    """Decode every image of a source into the cache `folder`, with audit and fingerprint.

    progress: called with (images done, all images). Raises DataError if the disk is too full, OSError if the cache
    can't be written.
    """
    total = sum(len(split) for split in source.splits.values())
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    _check_space(
        folder.parent, total * preprocess.store_size**2 * preprocess.channels * np.dtype(preprocess.pixels).itemsize
    )
    boot = boot_id()
    own = {INDEX} | {f"{name}{ending}" for name in source.splits for ending in ENDINGS}
    with atomic_folder(folder, sync=boot is None, check=lambda old: _keep_others(old, folder, own)) as temporary:
        decoded = {
            name: _decode_split(split, preprocess, temporary / f"{name}.npy", kernels, num_workers, count)
            for name, split in source.splits.items()
        }
        _finish(temporary, source, preprocess, signature, decoded, boot)


def _keep_others(old: Path, new: Path, own: Collection[str]) -> None:
    """Move files whose names are not in `own` from the cache `old`, which is about to be removed, to `new`.

    If both are the same folder, only check that this would work. Raises OSError if a file can't be moved.
    """
    moved: list[Path] = []
    try:
        for path in sorted(old.iterdir()):
            is_folder = path.is_dir() and not path.is_symlink()
            if path.name in own:
                if is_folder and any(path.iterdir()):
                    raise OSError(errno.ENOTEMPTY, f"{path.name} is a folder that holds files: move it away")
            elif old.absolute() != new.absolute():
                if os.path.lexists(new / path.name):
                    raise FileExistsError(errno.EEXIST, f"{path.name} was created there meanwhile: move it away")
                path.rename(new / path.name)
                moved.append(path)
    except BaseException:
        for path in moved:
            (new / path.name).rename(path)
        raise


def origin_of(source: DataSource) -> list[str]:
    """[root, name] of a source."""
    return [str(source.root or ""), source.name]


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DataError(
            f"the disk is too full for the cache: {num_bytes:,} bytes are needed, {free:,} are free in {folder}. "
            "Free some space, or choose another folder by `cache_dir`."
        )


def _decode_split(
    split: Split,
    preprocess: Preprocess,
    pixels: Path,
    kernels: Path,
    num_workers: int | None,
    count: Callable[[int], None],
) -> Decoded:
    side = preprocess.store_size
    images = allocate(pixels, (len(split), side, side, preprocess.channels), preprocess.pixels)
    if split.paths is not None:
        del images
        return decode_files(split.paths, preprocess, pixels, num_workers=num_workers, kernels=kernels, progress=count)
    if split.items is not None:
        return decode_items(split.items, split.names, preprocess, images, progress=count)
    assert split.arrays is not None
    digests, pixel_digests = [], []
    notes: dict[int, list[str]] = {}
    untouched = (split.arrays.shape, split.arrays.dtype) == (images.shape, images.dtype)
    for start in range(0, len(split), 1000):
        block = split.arrays[start : start + 1000]
        digests += [digest_of(array) for array in block]
        if untouched:
            images[start : start + 1000] = block
        else:
            for index, array in enumerate(block, start=start):
                images[index] = preprocess.store(array)
        for index, stored in enumerate(images[start : start + 1000], start=start):
            blank = is_one_colour(stored, preprocess.fit)
            pixel_digests.append(digests[index] if blank else digest_of(stored))
            if blank:
                notes[index] = ["one_colour"]
        count(len(block))
    return Decoded(digests, pixel_digests=pixel_digests, notes=notes)


def _finish(
    folder: Path,
    source: DataSource,
    preprocess: Preprocess,
    signature: str,
    decoded: Mapping[str, Decoded],
    boot: str | None,
) -> None:
    """Audit the decoded images, drop the unusable ones, and write the other files beside the pixels."""
    splits = source.splits
    digests = {name: np.asarray(result.digests, dtype="S32") for name, result in decoded.items()}
    audit = audit_images(
        {name: split.names for name, split in splits.items()},
        {name: split.labels for name, split in splits.items()},
        {name: np.asarray(result.pixel_digests, dtype="S32") for name, result in decoded.items()},
        {name: result.problems for name, result in decoded.items()},
        source.group_names,
        source.ignored,
        {name: result.notes for name, result in decoded.items()},
        allow_leaks=source.allow_leaks,
        multi_label=source.label_sets is not None,
    )
    out = audit.quarantined | audit.unreadable
    kept_splits = {}
    for name, split in splits.items():
        kept = np.asarray([f"{name}:{item}" not in out for item in split.names], dtype=bool)
        if not kept.all():
            keep_rows(folder / f"{name}.npy", np.flatnonzero(kept))
        names = [item for item, keep in zip(split.names, kept, strict=True) if keep]
        kept_splits[name] = (names, split.labels[kept], digests[name][kept])
    facts: list[Any] = [preprocess.fingerprint(), list(source.classes)]
    facts += [] if source.label_sets is None else [stored_sets(source.label_sets)]
    write_splits(folder, kept_splits, audit, signature=signature, origin=origin_of(source), facts=facts, boot=boot)
