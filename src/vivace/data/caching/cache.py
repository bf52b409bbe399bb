"""The cache: every image is decoded once and stored as uint8, with a fingerprint of the contents and `Preprocess`.

Three hashes protect it. The signature (names, sizes, times) quickly shows that a file has changed; the cache is then
rebuilt. The fingerprint (digests of the contents, labels, Preprocess) identifies the data. Checksums show whether the
pixels are still what was written. A cache is built in a temporary folder and renamed, so that an incomplete one is
never used; the next build removes what a killed one left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivace.cachedir import building, default_cache_dir, warn_if_shared
from vivace.config import check_choice
from vivace.data.audit import Audit, check_audit
from vivace.data.caching.build import build, origin_of
from vivace.data.caching.files import (
    CachedSplit,
    StoredCache,
    read_cache,
    settle,
)
from vivace.data.caching.index import DamagedFiles, folders_with, index_limit
from vivace.data.caching.signature import signature_of, unlisted_images
from vivace.data.decoding.decode import shown
from vivace.data.decoding.raw import is_raw
from vivace.data.layouts.badrows import audited
from vivace.data.preprocess import Preprocess
from vivace.data.splits import DataSource, check_source, without_lost_classes
from vivace.data.text import count_of, first_few
from vivace.errors import CacheMismatch, DataError
from vivace.files import canonical_json
from vivace.notices import warn

__all__ = ["Cache", "CachedSplit", "audited_cache", "open_cache"]

ON_BAD_IMAGE = ("auto", "refuse", "skip")


@dataclass(frozen=True)
class Cache:
    """A data set on disk, ready to train on."""

    folder: Path
    preprocess: Preprocess
    classes: tuple[str, ...]
    splits: dict[str, CachedSplit]
    fingerprint: str
    """64 hexadecimal digits; equal for equal images, labels, classes and stored pixels."""
    audit: Audit
    source: DataSource
    signature: str
    """The signature of the files when the cache was opened."""
    label_sets: np.ndarray | None = None
    """bool [M, K]: which classes the images of each of the labels in `splits` have. None: labels are classes."""
    unlisted: frozenset[str] = frozenset()
    """Image files that were in the source's folders, but not in the source, when the cache was opened."""

    def change(self) -> str | None:
        """A message if files of the source were changed, removed or added since the cache was opened; else None.

        The cache still holds the images as they were read, so its users need not stop.
        """
        if all(split.paths is None for split in self.source.splits.values()):
            # an object of this program, which waits for the run
            return None
        added = unlisted_images(self.source) - self.unlisted
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
    """The cache of a source; built if it does not exist, is damaged or no longer matches the files.

    on_bad_image: as for `check_audit`. allow_leaks: keep images in train that are also in another split.
    fingerprint: that of the data with which a run began. A cache with this fingerprint is used even if the files have
    changed since; if there is none, the current data is returned unchecked, and the caller compares the fingerprints.
    progress: called with (images done, all images).
    Raises DataError if a file can't be read, if `check_audit` refuses the data, if the cache can't be written, and with
    require_train if too few images remain.
    """
    check_choice("on_bad_image", on_bad_image, ON_BAD_IMAGE)
    _check_kind(source, preprocess)
    source = dataclasses.replace(source, allow_leaks=allow_leaks)
    cache = _open_or_build(source, preprocess, cache_dir or default_cache_dir(), num_workers, progress, fingerprint)
    if fingerprint is not None:
        # the run's data were checked when it began, and the caller refuses other data
        _tell(cache.audit, source.name)
        return cache
    check_audit(cache.audit, source.name, on_bad_image=on_bad_image)
    if require_train:
        if on_bad_image == "skip":
            smaller, lost = without_lost_classes(source, {name: split.labels_N for name, split in cache.splits.items()})
            if lost:
                classes = "class" if len(lost) == 1 else "classes"
                warn(f"left out {len(lost):,} {classes} with too few usable images: {first_few(lost)}")
                # keep the audit of all images, which lists what was left out
                rest = _open_or_build(smaller, preprocess, cache_dir or default_cache_dir(), num_workers, progress)
                cache, source = dataclasses.replace(rest, audit=cache.audit), smaller
        for name, split in cache.splits.items():
            if len(source.splits[name]) and not len(split.names):
                raise DataError(
                    f"no image in the split {name} of {source.name} can be used. 'vivace audit' lists why; fix them."
                )
        kept = {
            name: dataclasses.replace(source.splits[name], labels=split.labels_N)
            for name, split in cache.splits.items()
        }
        check_source(dataclasses.replace(source, splits=kept), require_train=True)
    _tell(cache.audit, source.name)
    return cache


def _tell(audit: Audit, name: str) -> None:
    """Warn of what is left out, and of images that are odd."""
    if left_out := len(audit.quarantined):
        warn(f"left out {left_out:,} of {audit.num_images:,} images of {name}: {audit.reasons()}")
    for message in audit.image_warnings():
        warn(message)


def _check_kind(source: DataSource, preprocess: Preprocess) -> None:
    """Raise DataError if the images are known to be of another kind than those that the network sees."""
    told, wanted = (source.pixels, source.channels), (preprocess.pixels, preprocess.channels)
    if told != wanted and (is_raw(*told) or (preprocess.is_raw and source.given)):
        channels = count_of(source.channels, "channel")
        raise DataError(
            f"the images are of another kind: {source.name} has {channels} of {source.pixels}, and "
            f"{count_of(preprocess.channels, 'channel')} of {preprocess.pixels} are asked for. Give images as those of "
            "training, or leave data.channels and data.pixels out."
        )


def audited_cache(
    source: DataSource,
    preprocess: Preprocess,
    *,
    cache_dir: Path | None = None,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Cache:
    """The cache of a source, of which nothing is refused: the images that can be used, and the audit of all."""
    return _open_or_build(source, preprocess, cache_dir or default_cache_dir(), num_workers, progress)


def _open_or_build(
    source: DataSource,
    preprocess: Preprocess,
    cache_dir: Path,
    num_workers: int | None,
    progress: Callable[[int, int], None],
    fingerprint: str | None = None,
) -> Cache:
    # listed before reading, so that a file added meanwhile counts as added
    unlisted = unlisted_images(source)
    signature = signature_of(source, preprocess)
    folder = _place(source, preprocess, cache_dir, signature)
    found = _read(folder, source, preprocess, signature)
    if fingerprint is not None and (found is None or found.fingerprint != fingerprint):
        found = _earlier(folder, source, preprocess, fingerprint) or found
    if found is None or (found.audit.unreadable and found.fingerprint != fingerprint):
        # a file that was unreadable may be readable now, although its size and time are the same
        try:
            with building(folder):
                # another process may have built it while this one waited for the lock
                found = _read(folder, source, preprocess, signature, say=False)
                if found is None or found.audit.unreadable:
                    build(folder, source, preprocess, signature, cache_dir / "kernels", num_workers, progress)
                    found = _read(folder, source, preprocess, signature, check_pixels=False)
            settle(folder)
        except OSError as error:
            raise DataError(
                f"the cache can't be written: {folder} ({error.strerror}). Choose another folder by `cache_dir`."
            ) from error
    if found is None:
        raise CacheMismatch(
            f"the cache can't be read back: {folder}. Check the disk, remove the entry by vivace cache --remove NAME, "
            "and try again."
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
        found.label_sets,
        unlisted,
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
            warn(f"the cache of {source.name} is damaged, so its images are read again: {folder} ({error})")
        return None


def _earlier(folder: Path, source: DataSource, preprocess: Preprocess, fingerprint: str) -> StoredCache | None:
    """The cache with this fingerprint, in `folder` or beside it: the name of the folder depends on the classes."""
    for other in folders_with(fingerprint, folder):
        with contextlib.suppress(DamagedFiles):
            found = read_cache(other, preprocess, origin=origin_of(source))
            if found is not None and found.fingerprint == fingerprint and _may_be(source, found):
                warn(
                    f"files of {source.name} were touched, changed, added or removed since this run began: it "
                    "continues with the original images from the cache"
                )
                return found
    return None


def _may_be(source: DataSource, found: StoredCache) -> bool:
    """Whether the cache may be of the source as it was earlier; an object is another one unless it has the same files.

    A place on disk says which data they are, and an object has none.
    """
    if not source.given:
        return True
    if any(split.paths is None for split in source.splits.values()):
        return False
    now = {f"{key}:{name}" for key, split in source.splits.items() for name in split.names}
    return now - found.audit.quarantined == {
        f"{key}:{name}" for key, split in found.splits.items() for name in split.names
    }


def _place(source: DataSource, preprocess: Preprocess, cache_dir: Path, signature: str) -> Path:
    """The folder of a cache, unique for the source, splits, classes and stored pixels; of objects, for the contents."""
    facts = [*origin_of(source), preprocess.fingerprint(), sorted(source.splits), list(source.classes)]
    # whether leaked images are in train changes the contents of the cache
    facts += ["leaks"] if source.allow_leaks else []
    if source.given and source.root is None:
        # many objects have the same name: the folds of a cross-validation are not to replace one another
        facts.append(signature)
    facts += [] if source.label_sets is None else ["sets of labels"]
    key = hashlib.sha256(canonical_json(facts)).hexdigest()[:10]
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in source.name)[:60]
    return cache_dir / "images" / f"{plain}-{key}"
