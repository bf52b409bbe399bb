"""Reads training images anew for each epoch, from an object whose items are random."""

from __future__ import annotations

import numpy as np

from vivace.data.caching.cache import Cache
from vivace.data.caching.items import stored_item
from vivace.data.objects.items import GivenItems
from vivace.errors import DataError, ImageError

__all__ = ["ReadAnew", "reader_of"]


class ReadAnew:
    """(position in the cache's training split, epoch) → stored pixels of the image, as that epoch has it.

    The global random numbers of torch, NumPy and Python are seeded before each item from the run's seed, the epoch and
    the item's place in the object: a resumed run reads what the unbroken one would have. Raises DataError if an item
    can't be read.
    """

    def __init__(self, cache: Cache, items: GivenItems, seed: int) -> None:
        split = cache.source.splits["train"]
        row_of = {name: row for row, name in enumerate(split.names)}
        self._names = cache.splits["train"].names
        # of the cache: images that the audit left out are not among them
        self._rows_N = [row_of[name] for name in self._names]
        self._items, self._preprocess, self._seed = items, cache.preprocess, seed

    def __call__(self, position: int, epoch: int) -> np.ndarray:
        row, name = self._rows_N[position], self._names[position]
        place = int(self._items.positions_N[row])
        seed = int(np.random.SeedSequence([self._seed, epoch, place]).generate_state(1)[0])
        try:
            return stored_item(self._items.read_anew(row, seed), name, self._preprocess)
        except ImageError as error:
            raise DataError(f"{name} can't be read in epoch {epoch + 1}: {error} Its first read was fine.") from None


def reader_of(cache: Cache, seed: int) -> ReadAnew | None:
    """What reads the training images of a cache; None where they stay as they are. seed: of the run."""
    items = cache.source.splits["train"].items if cache.source.anew else None
    return ReadAnew(cache, items, seed) if isinstance(items, GivenItems) else None
