"""Reads and writes the files of one cache; a damaged or incomplete cache is never used.

cache.json          names, audit, signature, fingerprint, checksums of the pixels, and its own hash
train.npy           uint8 [N, store_size, store_size, C], or uint16 or float32 where images are kept as they are; its
                    checksums are verified whenever it is opened
train.labels.npy    int64 [N]      covered by the fingerprint
train.digests.npy   bytes [N]      covered by the fingerprint

A new cache is used before its pixels are synced to disk, which may take longer than decoding them. Until then its index
holds the boot id of the system: after a reboot the cache is not trusted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivace import systems
from vivace.cachedir import INDEX, building
from vivace.data.audit import Audit
from vivace.data.caching.index import MAX_INDEX_BYTES, DamagedFiles, parse_index, read_index, sealed
from vivace.data.caching.signature import SCHEMA_VERSION
from vivace.data.caching.stored import Pixels, StoredImages, checksums, first_changed_block, read_column
from vivace.data.labelsets import checked_sets
from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError
from vivace.files import atomic_file, canonical_json, read_printable

__all__ = [
    "CachedSplit",
    "StoredCache",
    "allocate",
    "boot_id",
    "keep_rows",
    "read_cache",
    "settle",
    "write_splits",
]

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# a digest in hexadecimal
DIGEST = np.dtype("S32")
HEXADECIMAL = b"0123456789abcdef"
# the name of the thread that syncs a new cache to disk
SETTLING = "vivace-settle"


@dataclass(frozen=True)
class CachedSplit:
    """The decoded images of a split, without those that the audit quarantined."""

    images_NHWC: Pixels
    """[N, store_size, store_size, C] of `Preprocess.pixels`, in a file; rows are read when they are indexed."""
    labels_N: np.ndarray
    """int64, in [0, K); of images with sets of labels in [0, M)."""
    names: tuple[str, ...]
    digests_N: np.ndarray
    """bytes [N], blake2b-128 of each file in hexadecimal."""


@dataclass(frozen=True)
class StoredCache:
    """The contents of a cache's files."""

    folder: Path
    splits: dict[str, CachedSplit]
    classes: tuple[str, ...]
    fingerprint: str
    audit: Audit
    origin: tuple[str, str]
    """(root, name) of the source."""
    label_sets: np.ndarray | None = None
    """bool [M, K], as of the source."""


def allocate(path: Path, shape: tuple[int, int, int, int], dtype: str = "uint8") -> np.memmap:
    """A new .npy file of zeros, mapped for writing. Raises OSError if it does not fit on the disk."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    with path.open("r+b") as file:
        # writing to a sparse mapping on a full disk would kill this process by SIGBUS
        systems.reserve(file, path.stat().st_size)
    return images


def keep_rows(path: Path, kept: np.ndarray) -> None:
    """Shorten a .npy file of images to the rows `kept` (ascending), in place; block by block to save memory.

    Does not sync: `settle`, or whoever renames the folder, does.
    """
    images = np.load(path, mmap_mode="r+")
    # rows only move forward, so none is overwritten before it was read; those before the first gap stay in place
    moved = np.count_nonzero(kept == np.arange(len(kept)))
    for start in range(moved, len(kept), 1000):
        rows = kept[start : start + 1000]
        images[start : start + len(rows)] = images[rows]
    shape, row = (len(kept), *images.shape[1:]), int(np.prod(images.shape[1:])) * images.dtype.itemsize
    offset, kind = images.offset, np.lib.format.dtype_to_descr(images.dtype)
    del images
    with path.open("r+b") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        # numpy pads the header so that the first axis may change without changing its length
        assert file.tell() == offset
        file.truncate(offset + len(kept) * row)


def write_splits(
    folder: Path,
    splits: Mapping[str, tuple[list[str], np.ndarray, np.ndarray]],
    audit: Audit,
    *,
    signature: str,
    origin: list[str],
    facts: list[Any],
    boot: str | None = None,
) -> None:
    """Write everything but the pixels.

    splits: split → (names, labels int64 [N], digests bytes [N]). origin: root and name of the source. facts: further
    values that the fingerprint covers. boot: the boot id with which the cache is trusted; None: always.
    """
    names = {}
    for name, (items, labels, digests) in splits.items():
        np.save(folder / f"{name}.labels.npy", labels)
        np.save(folder / f"{name}.digests.npy", digests)
        names[name] = items
    contents = {name: (labels, digests) for name, (_, labels, digests) in splits.items()}
    index = {
        "schema_version": SCHEMA_VERSION,
        "signature": signature,
        "origin": origin,
        "fingerprint": _fingerprint(facts, contents),
        "facts": facts,
        "names": names,
        "checksums": {name: checksums(folder / f"{name}.npy") for name in splits},
        "audit": audit.to_dict(),
    }
    if boot is not None:
        index["boot"] = boot
    (folder / INDEX).write_bytes(sealed(index))


def boot_id() -> str | None:
    """The id of this boot of the system; None if the system has none."""
    try:
        return BOOT_ID.read_text("ascii").strip() or None
    except OSError:
        return None


def settle(folder: Path) -> threading.Thread:
    """Sync the files of a new cache to disk in a thread, and then remove the boot id from its index.

    Raises OSError if the index can't be read.
    """
    try:
        unsettled = read_printable(folder / INDEX, MAX_INDEX_BYTES)
    except ValueError:
        raise OSError(errno.EILSEQ, f"{INDEX} has changed") from None
    thread = threading.Thread(target=_settle, args=(folder, unsettled), daemon=True, name=SETTLING)
    thread.start()
    return thread


def _settle(folder: Path, unsettled: bytes) -> None:
    try:
        index = parse_index(unsettled)
    except DamagedFiles:
        # reported when it is opened next
        return
    if index.pop("boot", None) is None:
        return
    failed = False
    try:
        systems.sync_files(folder)
    except OSError:
        # the system may drop pages that it failed to write, so the contents are unknown
        failed = True
    # if the folder is no longer writable, its index stays as it is, which is trusted until the next boot
    with contextlib.suppress(OSError, ValueError):
        if not folder.exists():
            return
        with building(folder):
            # another process may have replaced the cache
            if read_printable(folder / INDEX, len(unsettled)) != unsettled:
                return
            if failed:
                (folder / INDEX).unlink()
                return
            with atomic_file(folder / INDEX) as file:
                file.write(sealed(index))


def read_cache(
    folder: Path,
    preprocess: Preprocess,
    *,
    signature: str | None = None,
    origin: list[str] | None = None,
    check_pixels: bool = True,
    max_index_bytes: int = MAX_INDEX_BYTES,
) -> StoredCache | None:
    """The cache in `folder`; None if there is none, or if it is of other files or another version, or was never synced.

    signature, origin: those that the cache must have; None: any. check_pixels: read all pixels and verify their
    checksums. Raises DamagedFiles.
    """
    try:
        index = read_index(folder / INDEX, max_index_bytes)
        if index is None:
            return None
        if signature not in (None, index["signature"]) or origin not in (None, index["origin"]):
            return None
        if "boot" in index and index["boot"] != boot_id():
            # its pixels may never have reached the disk
            return None
        splits = {name: _read_split(folder, name, index, preprocess, check_pixels) for name in index["names"]}
        contents = {name: (split.labels_N, split.digests_N) for name, split in splits.items()}
        if index["fingerprint"] != _fingerprint(index["facts"], contents):
            raise DamagedFiles("the labels or digests have changed")
        classes, stored = tuple(index["facts"][1]), index["facts"][2:]
        label_sets = checked_sets(stored[0], len(classes)) if stored else None
        for name, split in splits.items():
            _check_values(name, split, len(classes) if label_sets is None else len(label_sets))
        return StoredCache(
            folder,
            splits,
            classes,
            index["fingerprint"],
            Audit.from_dict(index["audit"]),
            (index["origin"][0], index["origin"][1]),
            label_sets,
        )
    # whatever damaged contents may raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError, ConfigError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.filename is None else error
        reason = " ".join(str(cause).split())[:200]
        raise DamagedFiles(reason or type(error).__name__) from None


def _read_split(
    folder: Path, name: str, index: Mapping[str, Any], preprocess: Preprocess, check_pixels: bool
) -> CachedSplit:
    pixels, names, side = folder / f"{name}.npy", index["names"][name], preprocess.store_size
    images = StoredImages(pixels)
    if images.shape != (len(names), side, side, preprocess.channels) or images.dtype != preprocess.pixels:
        raise DamagedFiles(f"{pixels.name} holds {images.dtype} {images.shape}")
    changed = first_changed_block(pixels, index["checksums"][name]) if check_pixels else None
    if changed is not None:
        raise DamagedFiles(f"{pixels.name} has changed in block {changed + 1} of 4 MiB")
    labels = read_column(folder / f"{name}.labels.npy", np.int64, len(names))
    digests = read_column(folder / f"{name}.digests.npy", DIGEST, len(names))
    return CachedSplit(images, labels, tuple(names), digests)


def _check_values(name: str, split: CachedSplit, num_classes: int) -> None:
    """Raise DamagedFiles for impossible values: a forged cache may have a valid fingerprint."""
    labels = split.labels_N
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise DamagedFiles(f"{name}.labels.npy holds {labels.min()} to {labels.max()} for {num_classes:,} classes")
    if split.digests_N.tobytes().translate(None, HEXADECIMAL):
        raise DamagedFiles(f"{name}.digests.npy holds values that are not digests")


def _fingerprint(facts: list[Any], contents: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """64 hexadecimal digits over what was decoded and how; independent of place and time."""
    hasher = hashlib.sha256(canonical_json(facts))
    for name, (labels, digests) in sorted(contents.items()):
        hasher.update(f"{name}\0{labels.dtype}{labels.shape}{digests.dtype}{digests.shape}".encode())
        hasher.update(labels.tobytes() + digests.tobytes())
    return hasher.hexdigest()
