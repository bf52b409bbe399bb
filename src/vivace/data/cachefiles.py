"""The files of one cache, written so that they are whole, and read so that nothing damaged is believed.

cache.json          names, audit, signature, fingerprint, and its own hash
train.npy           uint8 [N, store_size, store_size, C]; its size is checked, its contents are not read
train.labels.npy    int64 [N]      the fingerprint covers
train.digests.npy   bytes [N]      both of these

A new cache is used before its pixels are on the disk, which may take longer than decoding them: until they are, its
index names the start of the system, and after another start it is not believed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivace.data.audit import Audit
from vivace.data.cachedir import INDEX, building
from vivace.data.preprocess import Preprocess
from vivace.data.signature import SCHEMA_VERSION
from vivace.errors import ConfigError
from vivace.files import atomic_file, canonical_json, sync_files

__all__ = ["CachedSplit", "allocate", "boot_id", "keep_rows", "read_splits", "settle", "write_splits"]

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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


def allocate(path: Path, shape: tuple[int, int, int, int]) -> np.memmap:
    """A new .npy file of uint8 zeros, mapped for writing. Raises OSError if the disk has no room for all of it."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        try:
            # a sparse file on a full disk would end this process by SIGBUS, at whichever pixel comes first
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    return images


def keep_rows(path: Path, kept: np.ndarray) -> None:
    """Shorten a .npy file of uint8 to the rows `kept` (ascending), in place, block by block: it may exceed memory.

    Nothing waits for the disk here: that is `settle`'s matter, or that of whoever renames the folder.
    """
    images = np.load(path, mmap_mode="r+")
    # rows only move to the front, so none is overwritten before it was read; those before the first gap stay
    moved = np.count_nonzero(kept == np.arange(len(kept)))
    for start in range(moved, len(kept), 1000):
        rows = kept[start : start + 1000]
        images[start : start + len(rows)] = images[rows]
    shape, row = (len(kept), *images.shape[1:]), int(np.prod(images.shape[1:]))
    offset = images.offset
    del images
    with path.open("r+b") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        # numpy leaves room for the first axis to grow, so a header never changes its length
        assert file.tell() == offset
        file.truncate(offset + len(kept) * row)


def write_splits(
    folder: Path,
    splits: Mapping[str, tuple[list[str], np.ndarray, np.ndarray]],
    audit: Audit,
    *,
    signature: str,
    facts: list[Any],
    boot: str | None = None,
) -> None:
    """Write all but the pixels. splits: name → names, labels, digests; facts: what else the fingerprint covers.

    boot: the start of the system after which the cache is not believed; None: it always is.
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
        "fingerprint": _fingerprint(facts, contents),
        "facts": facts,
        "names": names,
        "audit": audit.to_dict(),
    }
    if boot is not None:
        index["boot"] = boot
    (folder / INDEX).write_bytes(_sealed(index))


def _sealed(index: dict[str, Any]) -> bytes:
    """The bytes of an index with its own hash."""
    return canonical_json({**index, "sha256": _hash(index)})


def _hash(index: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(index)).hexdigest()


def boot_id() -> str | None:
    """What names this start of the system; None where nothing does."""
    try:
        return BOOT_ID.read_text().strip() or None
    except OSError:
        return None


def settle(folder: Path) -> threading.Thread:
    """Put the files of a new cache on the disk, in a thread, and then let its index be believed for ever.

    Raises OSError if the index can't be read.
    """
    thread = threading.Thread(target=_settle, args=(folder, (folder / INDEX).read_bytes()), daemon=True)
    thread.start()
    return thread


def _settle(folder: Path, unsettled: bytes) -> None:
    index = json.loads(unsettled)
    index.pop("sha256")
    if index.pop("boot", None) is None:
        return
    failed = False
    try:
        sync_files(folder)
    except OSError:
        # a page that can't be written may be dropped: what is read from it later is anything
        failed = True
    # a folder that was closed to this process meanwhile keeps its index: it is believed until the next start
    with contextlib.suppress(OSError):
        if not folder.exists():
            return
        with building(folder):
            # another process may have put another cache in its place
            if (folder / INDEX).read_bytes() != unsettled:
                return
            if failed:
                (folder / INDEX).unlink()
                return
            with atomic_file(folder / INDEX) as file:
                file.write(_sealed(index))


def read_splits(
    folder: Path, preprocess: Preprocess, signature: str
) -> tuple[dict[str, CachedSplit], str, Audit] | None:
    """The splits in `folder`, their fingerprint and audit; None if they are absent, damaged, or of other files."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_bytes())
        if index["schema_version"] != SCHEMA_VERSION or index["signature"] != signature:
            return None
        if "boot" in index and index["boot"] != boot_id():
            # perhaps its pixels never came to the disk
            return None
        if index.pop("sha256") != _hash(index):
            return None
        splits = {}
        for name, names in index["names"].items():
            images = np.load(folder / f"{name}.npy", mmap_mode="r")
            labels = np.load(folder / f"{name}.labels.npy")
            digests = np.load(folder / f"{name}.digests.npy")
            side = preprocess.store_size
            if images.dtype != np.uint8 or images.shape != (len(names), side, side, preprocess.channels):
                return None
            if (folder / f"{name}.npy").stat().st_size != images.offset + images.nbytes:
                return None
            splits[name] = CachedSplit(images, labels, tuple(names), digests)
        contents = {name: (split.labels_N, split.digests_N) for name, split in splits.items()}
        if index["fingerprint"] != _fingerprint(index["facts"], contents):
            return None
        return splits, index["fingerprint"], Audit.from_dict(index["audit"])
    # whatever damaged bytes lead to
    except (OSError, ValueError, LookupError, TypeError, EOFError, ConfigError):
        return None


def _fingerprint(facts: list[Any], contents: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """64 hexadecimal digits over what was decoded and how: equal wherever and whenever it was."""
    hasher = hashlib.sha256(canonical_json(facts))
    for name, (labels, digests) in sorted(contents.items()):
        hasher.update(f"{name}\0{labels.dtype}{labels.shape}{digests.dtype}{digests.shape}".encode())
        hasher.update(labels.tobytes() + digests.tobytes())
    return hasher.hexdigest()
