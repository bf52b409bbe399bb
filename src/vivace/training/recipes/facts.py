"""What the named recipes depend on: a few facts about a data set that cost little to get (no torch here)."""

from __future__ import annotations

import statistics

from vivace.data.decoding.decode import size_of
from vivace.data.decoding.raw import is_raw
from vivace.data.splits import DataSource, Split
from vivace.errors import ImageError
from vivace.models.pretrained import available_without_download
from vivace.training.recipes.named import PACKAGED_NETWORK, DataFacts

__all__ = ["measure_facts"]

# the typical size is taken from the headers of this many files, evenly spread
NUM_SAMPLED = 64


def measure_facts(source: DataSource) -> DataFacts:
    """The facts of a data source; only headers of files are read, and unreadable files are skipped."""
    train = source.splits["train"]
    return DataFacts(
        num_images=len(train.labels),
        num_classes=len(source.classes),
        channels=source.channels,
        side=_typical_side(train),
        raw=is_raw(source.pixels, source.channels),
        weights_at_hand=available_without_download(PACKAGED_NETWORK) is not None,
    )


def _typical_side(split: Split) -> int:
    """Median shorter side, px; 128 if no sampled image can be read (the audit reports why)."""
    if split.arrays is not None:
        return int(min(split.arrays.shape[1:3]))
    num_sampled = min(len(split), NUM_SAMPLED)
    sides = []
    for index in range(num_sampled):
        try:
            sides.append(min(_size(split, index * len(split) // num_sampled)))
        except ImageError:
            # the audit reports them
            continue
    return round(statistics.median(sides)) if sides else 128


def _size(split: Split, row: int) -> tuple[int, int]:
    """(height, width) or (width, height) of an image. Raises ImageError."""
    # of files the header only: nothing is decoded, so a decompression bomb does no harm
    if split.items is None:
        assert split.paths is not None
        return size_of(split.paths[row])
    height, width = split.items.sizes[row].tolist()
    if height:
        return height, width
    data = split.items.read(row)
    return size_of(data) if isinstance(data, bytes) else (data.shape[0], data.shape[1])
