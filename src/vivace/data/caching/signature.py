"""What tells at once, without reading an image, whether the files of a data set are still those of its cache."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import PIL

from vivace.data.decoding.decode import EXTENSIONS
from vivace.data.preprocess import Preprocess
from vivace.data.splits import DataSource
from vivace.files import canonical_json

__all__ = ["signature_of", "strangers_of"]

# raised when the files of a cache change, or which images are read: older ones are then made again
SCHEMA_VERSION = 5


def signature_of(source: DataSource, preprocess: Preprocess) -> str:
    """A hash over names, labels, sizes and times of all files (contents, for arrays): 60,000 files take 0.15 s."""
    hasher = hashlib.blake2b(digest_size=16)
    # another Pillow may decode or resize a pixel otherwise: predictions would no longer see what training saw
    facts = [SCHEMA_VERSION, PIL.__version__, preprocess.fingerprint(), list(source.classes), list(source.ignored)]
    hasher.update(canonical_json(facts))
    for name, split in sorted(source.splits.items()):
        hasher.update(f"{name}\0{len(split)}\0".encode())
        hasher.update(np.ascontiguousarray(split.labels).data)
        hasher.update("\0".join(split.names).encode("utf-8", "surrogateescape"))
        if split.arrays is not None:
            hasher.update(str(split.arrays.shape).encode())
            hasher.update(np.ascontiguousarray(split.arrays).data)
        for path in split.paths or ():
            try:
                stat = os.stat(path)  # noqa: PTH116 (60,000 Path objects are a second's work)
                hasher.update(b"%d %d " % (stat.st_size, stat.st_mtime_ns))
            except OSError:
                hasher.update(b"gone ")
    return hasher.hexdigest()


def strangers_of(source: DataSource) -> frozenset[str]:
    """Images that lie beside those of the source and are none of them, as paths; folders that are gone count as empty.

    A folder of class folders has none, a manifest may have many: a new one tells that an image was added.
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
