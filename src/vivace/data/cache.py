"""The cache: every image decoded once into a memory map of uint8, with a fingerprint of contents and Preprocess.

    <cache>/<data set>-<key>/cache.json     classes, names, audit, signature, fingerprint and its own hash
                             train.npy      uint8 [N, store_size, store_size, C]
                             train.labels.npy, train.digests.npy, and so on for val and test

The signature (names, sizes, times) tells at once whether a file has changed; the fingerprint (digests of the contents,
labels, Preprocess) tells whether two caches hold the same data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vivace.data.audit import Audit, audit_images
from vivace.data.cachedir import INDEX, default_cache_dir
from vivace.data.preprocess import Preprocess
from vivace.data.splits import DataSource, Split, check_source
from vivace.data.workers import Decoded, decode_files
from vivace.errors import CacheMismatch, ConfigError, DataError
from vivace.files import atomic_folder, canonical_json

__all__ = ["Cache", "CachedSplit", "audit_source", "open_cache"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CachedSplit:
    """The decoded images of a split, those that the audit quarantined left out."""

    images_NHWC: np.ndarray
    """uint8 [N, store_size, store_size, C], memory-mapped, read-only."""
    labels_N: np.ndarray
    """int64."""
    names: tuple[str, ...]
    digests_N: np.ndarray
    """bytes [N], blake2b-128 of each file in hexadecimal."""


@dataclass(frozen=True)
class Cache:
    """A data set on disk, ready to train on."""

    folder: Path
    preprocess: Preprocess
    classes: tuple[str, ...]
    splits: dict[str, CachedSplit]
    fingerprint: str
    """64 hexadecimal digits: equal for equal images, labels, classes and stored pixels."""
    audit: Audit
    source: DataSource
    signature: str

    def check_files(self) -> None:
        """Raise CacheMismatch if a file of the source has changed or vanished since the cache was made."""
        if signature_of(self.source, self.preprocess) != self.signature:
            raise CacheMismatch(
                f"the images of {self.source.name} have changed since they were cached ({self.folder}). "
                "Start again: they are then read anew."
            )


def open_cache(
    source: DataSource,
    preprocess: Preprocess,
    *,
    cache_dir: Path | None = None,
    on_bad_image: str = "refuse",
    allow_leaks: bool = False,
    require_train: bool = True,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Cache:
    """The cache of a source, made if it is not there or no longer fits the files.

    progress is told (images done, images in all). Raises DataError if the audit quarantined images and on_bad_image is
    not "skip", or found the same image in train and another split and allow_leaks is False.
    """
    cache = _open_or_build(source, preprocess, cache_dir or default_cache_dir(), num_workers, progress)
    _enforce(cache.audit, source, on_bad_image, allow_leaks)
    if require_train:
        kept = {
            name: dataclasses.replace(source.splits[name], labels=split.labels_N)
            for name, split in cache.splits.items()
        }
        check_source(dataclasses.replace(source, splits=kept), require_train=True)
    return cache


def audit_source(
    source: DataSource,
    preprocess: Preprocess,
    *,
    cache_dir: Path | None = None,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Audit:
    """The audit of a source: the same pass over the files as for training, and nothing is refused."""
    return _open_or_build(source, preprocess, cache_dir or default_cache_dir(), num_workers, progress).audit


def signature_of(source: DataSource, preprocess: Preprocess) -> str:
    """A hash over names, labels, sizes and times of all files (contents, for arrays): quick to take."""
    hasher = hashlib.blake2b(digest_size=16)
    hasher.update(
        canonical_json([SCHEMA_VERSION, preprocess.fingerprint(), list(source.classes), list(source.ignored)])
    )
    for name, split in sorted(source.splits.items()):
        hasher.update(name.encode())
        hasher.update(np.ascontiguousarray(split.labels).data)
        hasher.update("\0".join(split.names).encode("utf-8", "surrogateescape"))
        if split.arrays is not None:
            hasher.update(np.ascontiguousarray(split.arrays).data)
        for path in split.paths or ():
            try:
                facts = os.stat(path)  # noqa: PTH116 (60,000 Path objects are a second's work)
                hasher.update(b"%d %d " % (facts.st_size, facts.st_mtime_ns))
            except OSError:
                hasher.update(b"gone ")
    return hasher.hexdigest()


def _open_or_build(
    source: DataSource,
    preprocess: Preprocess,
    cache_dir: Path,
    num_workers: int | None,
    progress: Callable[[int, int], None],
) -> Cache:
    place = f"{source.root or ''}\0{source.name}\0{preprocess.fingerprint()}\0{sorted(source.splits)}"
    key = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    folder = cache_dir / "images" / f"{_safe(source.name)}-{key}"
    signature = signature_of(source, preprocess)
    cache = _read(folder, source, preprocess, signature)
    if cache is None:
        _build(folder, source, preprocess, signature, num_workers, progress)
        cache = _read(folder, source, preprocess, signature)
    if cache is None:
        raise CacheMismatch(
            f"the cache can't be read back: {folder}. Is the disk sound? Remove the folder and try again."
        )
    return cache


def _safe(name: str) -> str:
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in name)[:60]


def _read(folder: Path, source: DataSource, preprocess: Preprocess, signature: str) -> Cache | None:
    """The cache in `folder`, or None if it is absent, damaged, or of other files."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_bytes())
        if index.get("schema_version") != SCHEMA_VERSION or index["signature"] != signature:
            return None
        if index.pop("sha256") != hashlib.sha256(canonical_json(index)).hexdigest():
            return None
        splits = {}
        for name, names in index["names"].items():
            images = np.load(folder / f"{name}.npy", mmap_mode="r")
            labels = np.load(folder / f"{name}.labels.npy")
            digests = np.load(folder / f"{name}.digests.npy")
            side = preprocess.store_size
            if images.dtype != np.uint8 or images.shape != (len(names), side, side, preprocess.channels):
                return None
            if len(labels) != len(names) or len(digests) != len(names):
                return None
            splits[name] = CachedSplit(images, labels, tuple(names), digests)
        audit = Audit.from_dict(index["audit"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None
    return Cache(folder, preprocess, source.classes, splits, index["fingerprint"], audit, source, signature)


def _build(
    folder: Path,
    source: DataSource,
    preprocess: Preprocess,
    signature: str,
    num_workers: int | None,
    progress: Callable[[int, int], None],
) -> None:
    total = sum(len(split) for split in source.splits.values())
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_space(folder.parent, total * preprocess.store_size**2 * preprocess.channels)
        with atomic_folder(folder) as temporary:
            decoded = {
                name: _decode_split(split, preprocess, temporary / f"{name}.npy", num_workers, count)
                for name, split in source.splits.items()
            }
            _write_index(temporary, source, preprocess, signature, decoded)
    except OSError as error:
        raise DataError(
            f"the cache can't be written: {folder} ({error.strerror}). Name another by --cache-dir."
        ) from error


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DataError(
            f"the disk is too full for the cache: {num_bytes:,} bytes are needed, {free:,} are free in {folder}. "
            "Make room, or name another by --cache-dir."
        )


def _decode_split(
    split: Split, preprocess: Preprocess, pixels: Path, num_workers: int | None, count: Callable[[int], None]
) -> Decoded:
    side = preprocess.store_size
    images = np.lib.format.open_memmap(
        pixels, mode="w+", dtype=np.uint8, shape=(len(split), side, side, preprocess.channels)
    )
    if split.paths is not None:
        del images
        return decode_files(split.paths, preprocess, pixels, num_workers=num_workers, progress=count)
    assert split.arrays is not None
    if split.arrays.shape == images.shape:
        images[:] = split.arrays
    else:
        for index, array in enumerate(split.arrays):
            images[index] = preprocess.store(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array))
    images.flush()
    count(len(split))
    return Decoded([hashlib.blake2b(np.ascontiguousarray(a).data, digest_size=16).hexdigest() for a in split.arrays])


def _write_index(
    folder: Path, source: DataSource, preprocess: Preprocess, signature: str, decoded: Mapping[str, Decoded]
) -> None:
    splits = source.splits
    digests = {name: np.asarray(result.digests, dtype="S32") for name, result in decoded.items()}
    audit = audit_images(
        {name: split.names for name, split in splits.items()},
        {name: split.labels for name, split in splits.items()},
        digests,
        {name: result.problems for name, result in decoded.items()},
        source.classes,
        source.ignored,
    )
    quarantined = audit.quarantined
    hasher = hashlib.sha256(canonical_json([SCHEMA_VERSION, preprocess.fingerprint(), list(source.classes)]))
    names: dict[str, list[str]] = {}
    for name, split in sorted(splits.items()):
        kept = np.asarray([f"{name}:{item}" not in quarantined for item in split.names], dtype=bool)
        if not kept.all():
            _compact(folder / f"{name}.npy", np.flatnonzero(kept))
        labels = split.labels[kept]
        np.save(folder / f"{name}.labels.npy", labels)
        np.save(folder / f"{name}.digests.npy", digests[name][kept])
        names[name] = [item for item, keep in zip(split.names, kept, strict=True) if keep]
        hasher.update(name.encode() + labels.tobytes() + digests[name][kept].tobytes())
    index = {
        "schema_version": SCHEMA_VERSION,
        "signature": signature,
        "fingerprint": hasher.hexdigest(),
        "names": names,
        "audit": audit.to_dict(),
    }
    index["sha256"] = hashlib.sha256(canonical_json(index)).hexdigest()
    (folder / INDEX).write_bytes(canonical_json(index))


def _compact(path: Path, kept: np.ndarray) -> None:
    """Rewrite an array file with some rows only, block by block: it may be larger than memory."""
    images = np.load(path, mmap_mode="r")
    partial = path.with_suffix(".part")
    smaller = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(kept), *images.shape[1:]))
    for start in range(0, len(kept), 1000):
        smaller[start : start + 1000] = images[kept[start : start + 1000]]
    smaller.flush()
    del images, smaller
    partial.replace(path)


def _enforce(audit: Audit, source: DataSource, on_bad_image: str, allow_leaks: bool) -> None:
    leaks, bad = audit.of("refuse"), audit.of("quarantine")
    if leaks and not allow_leaks:
        raise DataError(
            f"{len(leaks)} images of {source.name} stand in train and in another split: {leaks[0].message}. "
            "Remove the copies, or go on with --allow-leaks. 'vivace audit' lists all."
        )
    if bad and on_bad_image != "skip":
        raise DataError(
            f"{len(audit.quarantined)} images of {source.name} can't be used: {bad[0].message} "
            "Mend them, or go on without them by --on-bad-image skip. 'vivace audit' lists all."
        )
