"""The cache: every image decoded once into a memory map of uint8, with a fingerprint of contents and Preprocess.

The signature (names, sizes, times) tells at once whether a file has changed, and then the cache is made anew; the
fingerprint (digests of the contents, labels, Preprocess) tells whether two caches hold the same data, and checksums
whether the pixels are still what was written. A cache is built beside its place and renamed: half of one is never
found, and the next build clears away what a killed one left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivace.cachedir import building, default_cache_dir, warn_if_shared
from vivace.data.audit import Audit, audit_images, check_audit
from vivace.data.badrows import audited
from vivace.data.cachefiles import (
    CachedSplit,
    DamagedFiles,
    StoredCache,
    allocate,
    boot_id,
    folders_with,
    keep_rows,
    read_cache,
    settle,
    write_splits,
)
from vivace.data.decode import shown
from vivace.data.preprocess import Preprocess
from vivace.data.signature import signature_of, strangers_of
from vivace.data.splits import DataSource, Split, check_source
from vivace.data.workers import Decoded, decode_files, digest_of, is_one_colour
from vivace.errors import CacheMismatch, DataError
from vivace.files import atomic_folder, canonical_json
from vivace.notices import warn

__all__ = ["Cache", "CachedSplit", "audit_source", "open_cache"]


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
    """Of the files when the cache was opened."""
    strangers: frozenset[str] = frozenset()
    """Images that lay beside those of the source when the cache was opened."""

    def change(self) -> str | None:
        """What tells of a file of the source that was touched, changed, removed or added since the cache was opened.

        None if none was. The cache holds what was read before: nothing that uses it need stop.
        """
        added = strangers_of(self.source) - self.strangers
        if signature_of(self.source, self.preprocess) == self.signature and not added:
            return None
        example = f", such as the new {shown(min(added))}" if added else ""
        return f"files of {self.source.name} were touched, changed, added or removed since they were read{example}"


def open_cache(
    source: DataSource,
    preprocess: Preprocess,
    *,
    cache_dir: Path | None = None,
    on_bad_image: str = "auto",
    allow_leaks: bool = False,
    require_train: bool = True,
    num_workers: int | None = None,
    fingerprint: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Cache:
    """The cache of a source, made if it is not there, damaged, or no longer fits the files.

    fingerprint: that of the data which a run began with: a cache that still has it is taken, whatever has become of the
    files; else the cache is that of other data, and nothing of it is refused. progress is told (images done, images in
    all). on_bad_image: as for `check_audit`; allow_leaks: images of train that are in another split too stay there.
    Raises DataError if a file can't be read, for what `check_audit` refuses; for training, if too few images are left;
    and if the cache can't be written.
    """
    source = dataclasses.replace(source, allow_leaks=allow_leaks)
    cache = _open_or_build(source, preprocess, cache_dir or default_cache_dir(), num_workers, progress, fingerprint)
    if fingerprint is not None:
        # what a run began with was looked over then, and other data are not for it
        return cache
    check_audit(cache.audit, source.name, on_bad_image=on_bad_image)
    if require_train:
        for name, split in cache.splits.items():
            if len(source.splits[name]) and not len(split.names):
                raise DataError(
                    f"no image of the split {name} of {source.name} can be used. 'vivace audit' lists why; mend them."
                )
        kept = {
            name: dataclasses.replace(source.splits[name], labels=split.labels_N)
            for name, split in cache.splits.items()
        }
        check_source(dataclasses.replace(source, splits=kept), require_train=True)
    if left_out := len(cache.audit.quarantined):
        warn(f"{left_out:,} of {cache.audit.num_images:,} images of {source.name} left out: {cache.audit.reasons()}")
    for message in cache.audit.noticed():
        warn(message)
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


def _open_or_build(
    source: DataSource,
    preprocess: Preprocess,
    cache_dir: Path,
    num_workers: int | None,
    progress: Callable[[int, int], None],
    fingerprint: str | None = None,
) -> Cache:
    folder = _place(source, preprocess, cache_dir)
    # listed first: what is added while the files are read counts as added
    strangers = strangers_of(source)
    signature = signature_of(source, preprocess)
    found = _read(folder, source, preprocess, signature)
    if fingerprint is not None and (found is None or found.fingerprint != fingerprint):
        found = _earlier(folder, source, preprocess, fingerprint) or found
    if found is None or (found.audit.unreadable and found.fingerprint != fingerprint):
        # an unreadable file may be readable by now, and neither its size nor its time would tell
        try:
            with building(folder):
                # another process may have built it while we waited
                found = _read(folder, source, preprocess, signature, say=False)
                if found is None or found.audit.unreadable:
                    _build(folder, source, preprocess, signature, cache_dir / "kernels", num_workers, progress)
                    found = _read(folder, source, preprocess, signature, check_pixels=False)
            settle(folder)
        except OSError as error:
            raise DataError(
                f"the cache can't be written: {folder} ({error.strerror}). Name another place by --cache-dir."
            ) from error
    if found is None:
        raise CacheMismatch(
            f"the cache can't be read back: {folder}. Is the disk sound? Take its entry out by "
            "vivace cache --remove NAME, and try again."
        )
    warn_if_shared(found.folder)
    return Cache(
        found.folder,
        preprocess,
        found.classes,
        found.splits,
        found.fingerprint,
        audited(found.audit, source),
        source,
        signature,
        strangers,
    )


def _read(
    folder: Path,
    source: DataSource,
    preprocess: Preprocess,
    signature: str | None,
    *,
    check_pixels: bool = True,
    say: bool = True,
) -> StoredCache | None:
    try:
        return read_cache(folder, preprocess, signature=signature, check_pixels=check_pixels)
    except DamagedFiles as error:
        if say:
            warn(f"the cache of {source.name} is damaged, its images are read anew: {folder} ({error})")
        return None


def _earlier(folder: Path, source: DataSource, preprocess: Preprocess, fingerprint: str) -> StoredCache | None:
    """The cache with this fingerprint, in `folder` or beside it: with another class it is in another place."""
    for other in folders_with(fingerprint, folder):
        with contextlib.suppress(DamagedFiles):
            found = read_cache(other, preprocess, origin=_origin(source))
            if found is not None and found.fingerprint == fingerprint:
                warn(
                    f"files of {source.name} were touched, changed, added or removed since this run began: it "
                    "goes on with the images that it began with, out of the cache"
                )
                return found
    return None


def _origin(source: DataSource) -> list[str]:
    return [str(source.root or ""), source.name]


def _place(source: DataSource, preprocess: Preprocess, cache_dir: Path) -> Path:
    """The folder of a cache: one for each source, set of splits, classes, and way to store pixels."""
    facts = [*_origin(source), preprocess.fingerprint(), sorted(source.splits), list(source.classes)]
    # images of train that are in another split too are in one kind of cache and not in the other
    facts += ["leaks"] if source.allow_leaks else []
    key = hashlib.sha256(canonical_json(facts)).hexdigest()[:10]
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in source.name)[:60]
    return cache_dir / "images" / f"{plain}-{key}"


def _build(
    folder: Path,
    source: DataSource,
    preprocess: Preprocess,
    signature: str,
    kernels: Path,
    num_workers: int | None,
    progress: Callable[[int, int], None],
) -> None:
    total = sum(len(split) for split in source.splits.values())
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    _check_space(folder.parent, total * preprocess.store_size**2 * preprocess.channels)
    boot = boot_id()
    with atomic_folder(folder, sync=boot is None) as temporary:
        decoded = {
            name: _decode_split(split, preprocess, temporary / f"{name}.npy", kernels, num_workers, count)
            for name, split in source.splits.items()
        }
        _finish(temporary, source, preprocess, signature, decoded, boot)


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DataError(
            f"the disk is too full for the cache: {num_bytes:,} bytes are needed, {free:,} are free in {folder}. "
            "Make room, or name another place by --cache-dir."
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
    images = allocate(pixels, (len(split), side, side, preprocess.channels))
    if split.paths is not None:
        del images
        return decode_files(split.paths, preprocess, pixels, num_workers=num_workers, kernels=kernels, progress=count)
    assert split.arrays is not None
    digests, pixel_digests = [], []
    notes: dict[int, list[str]] = {}
    untouched = split.arrays.shape == images.shape
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
    """Audit what was decoded, leave out what can't be used, and write the rest beside the pixels."""
    splits = source.splits
    digests = {name: np.asarray(result.digests, dtype="S32") for name, result in decoded.items()}
    audit = audit_images(
        {name: split.names for name, split in splits.items()},
        {name: split.labels for name, split in splits.items()},
        {name: np.asarray(result.pixel_digests, dtype="S32") for name, result in decoded.items()},
        {name: result.problems for name, result in decoded.items()},
        source.classes,
        source.ignored,
        {name: result.notes for name, result in decoded.items()},
        allow_leaks=source.allow_leaks,
    )
    out = audit.quarantined | audit.unreadable
    kept_splits = {}
    for name, split in splits.items():
        kept = np.asarray([f"{name}:{item}" not in out for item in split.names], dtype=bool)
        if not kept.all():
            keep_rows(folder / f"{name}.npy", np.flatnonzero(kept))
        names = [item for item, keep in zip(split.names, kept, strict=True) if keep]
        kept_splits[name] = (names, split.labels[kept], digests[name][kept])
    facts = [preprocess.fingerprint(), list(source.classes)]
    write_splits(folder, kept_splits, audit, signature=signature, origin=_origin(source), facts=facts, boot=boot)
