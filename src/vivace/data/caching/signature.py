"""Detects whether a data set has changed since it was cached: of files, without reading them."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import PIL

from vivace.data.decoding.decode import EXTENSIONS
from vivace.data.labelsets import stored_sets
from vivace.data.preprocess import Preprocess
from vivace.data.splits import DataSource
from vivace.files import canonical_json

__all__ = ["signature_of", "unlisted_images"]

# increase this when the format of a cache or the selection of images changes: older caches are then rebuilt
SCHEMA_VERSION = 5
# images that are hashed at once
BLOCK = 1000


def signature_of(source: DataSource, preprocess: Preprocess) -> str:
    """A hash over names, labels, and the sizes and times of files or the contents of other images; hexadecimal."""
    hasher = hashlib.blake2b(digest_size=16)
    # another version of Pillow may give other pixels, so that predictions would differ from training
    facts = [SCHEMA_VERSION, PIL.__version__, preprocess.fingerprint(), list(source.classes), list(source.ignored)]
    facts += [] if source.label_sets is None else [stored_sets(source.label_sets)]
    hasher.update(canonical_json(facts))
    for name, split in sorted(source.splits.items()):
        hasher.update(f"{name}\0{len(split)}\0".encode())
        hasher.update(np.ascontiguousarray(split.labels).data)
        hasher.update("\0".join(split.names).encode("utf-8", "surrogateescape"))
        if split.arrays is not None:
            hasher.update(str(split.arrays.shape).encode())
            # block by block: an array may be a view of a file, larger than the memory
            for start in range(0, len(split), BLOCK):
                hasher.update(np.ascontiguousarray(split.arrays[start : start + BLOCK]).data)
        if split.items is not None:
            hasher.update(split.items.digests.tobytes() + split.items.sizes.tobytes())
        for path in split.paths or ():
            try:
                stat = os.stat(path)  # noqa: PTH116 (60,000 Path objects are a second's work)
                hasher.update(b"%d %d " % (stat.st_size, stat.st_mtime_ns))
            except OSError:
                hasher.update(b"gone ")
    return hasher.hexdigest()


def unlisted_images(source: DataSource) -> frozenset[str]:
    """Paths of image files that are in the same folders as those of the source, but not in the source.

    Class folders have none; the folders of a manifest may have many. A new one means that an image was added. Missing
    folders count as empty.
    """
    known = {path for split in source.splits.values() for path in split.paths or ()}
    found: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in known}:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 (as above)
        except OSError:
            continue
        found.update(f"{folder}/{name}" if folder else name for name in names if _is_image(name))
    return frozenset(found - known)


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in EXTENSIONS and not name.startswith(".")
