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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vivace.cachedir import building, default_cache_dir, warn_if_shared
from vivace.data.audit import Audit, check_audit
from vivace.data.caching.build import build, origin_of
from vivace.data.caching.files import (
    CachedSplit,
    StoredCache,
    read_cache,
    settle,
)
from vivace.data.caching.index import DamagedFiles, folders_with, index_limit
from vivace.data.caching.signature import signature_of, strangers_of
from vivace.data.decoding.decode import shown
from vivace.data.layouts.assemble import some
from vivace.data.layouts.badrows import audited
from vivace.data.preprocess import Preprocess
from vivace.data.splits import DataSource, check_source, without_lost_classes
from vivace.errors import CacheMismatch, DataError
from vivace.files import canonical_json
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
        if on_bad_image == "skip":
            smaller, lost = without_lost_classes(source, {name: split.labels_N for name, split in cache.splits.items()})
            if lost:
                warn(f"{'class' if len(lost) == 1 else 'classes'} left out, with too few usable images: {some(lost)}")
                # what is left out is still to be listed
                rest = _open_or_build(smaller, preprocess, cache_dir or default_cache_dir(), num_workers, progress)
                cache, source = dataclasses.replace(rest, audit=cache.audit), smaller
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
                    build(folder, source, preprocess, signature, cache_dir / "kernels", num_workers, progress)
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
        limit = index_limit(source)
        found = read_cache(folder, preprocess, signature=signature, check_pixels=check_pixels, max_index_bytes=limit)
        if found is not None and (found.splits.keys(), found.classes) != (source.splits.keys(), source.classes):
            raise DamagedFiles("it has other splits or classes")
        return found
    except DamagedFiles as error:
        if say:
            warn(f"the cache of {source.name} is damaged, its images are read anew: {folder} ({error})")
        return None


def _earlier(folder: Path, source: DataSource, preprocess: Preprocess, fingerprint: str) -> StoredCache | None:
    """The cache with this fingerprint, in `folder` or beside it: with another class it is in another place."""
    for other in folders_with(fingerprint, folder):
        with contextlib.suppress(DamagedFiles):
            found = read_cache(other, preprocess, origin=origin_of(source))
            if found is not None and found.fingerprint == fingerprint:
                warn(
                    f"files of {source.name} were touched, changed, added or removed since this run began: it "
                    "goes on with the images that it began with, out of the cache"
                )
                return found
    return None


def _place(source: DataSource, preprocess: Preprocess, cache_dir: Path) -> Path:
    """The folder of a cache: one for each source, set of splits, classes, and way to store pixels."""
    facts = [*origin_of(source), preprocess.fingerprint(), sorted(source.splits), list(source.classes)]
    # images of train that are in another split too are in one kind of cache and not in the other
    facts += ["leaks"] if source.allow_leaks else []
    key = hashlib.sha256(canonical_json(facts)).hexdigest()[:10]
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in source.name)[:60]
    return cache_dir / "images" / f"{plain}-{key}"
