"""Width and height of images as they lie in files, by their headers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from vivace.data.decoding.decode import size_of
from vivace.data.splits import Split
from vivace.errors import ImageError

__all__ = ["image_sizes"]

# files that are looked at: of large photos each is read whole
MAX_FILES = 2000


def image_sizes(split: Split, names: Sequence[str], *, seed: int = 0) -> np.ndarray | None:
    """int64 [N, 2], width and height in px of the images with these names of a split, before rotation by EXIF.

    0 for those that are not known: of more than 2,000 images as many are looked at, drawn by `seed`. None where images
    are in one array, and so of one size.
    """
    if split.paths is None and split.items is None:
        return None
    place = {name: row for row, name in enumerate(split.names)}
    sizes = np.zeros((len(names), 2), np.int64)
    chosen = np.arange(len(names))
    if len(names) > MAX_FILES:
        chosen = np.random.default_rng(seed).choice(len(names), MAX_FILES, replace=False)
    for index in chosen.tolist():
        row = place.get(names[index])
        if row is None:
            continue
        if split.items is not None:
            sizes[index] = split.items.sizes[row][::-1]
            continue
        assert split.paths is not None
        # a file may have gone since it was decoded into the cache
        with contextlib.suppress(ImageError):
            sizes[index] = size_of(split.paths[row])
    return sizes if sizes.any() else None
