"""A few facts about a data set, cheap to get: what the named recipes depend on (no torch here)."""

from __future__ import annotations

import statistics

from vivace.data.decoding.decode import size_of
from vivace.data.splits import DataSource, Split
from vivace.errors import ImageError
from vivace.training.recipes import DataFacts

__all__ = ["measure_facts"]

# headers of this many files, evenly spread, tell the typical size
NUM_SAMPLED = 64


def measure_facts(source: DataSource) -> DataFacts:
    """The facts of a data source; of files only headers are read, and those that can't be read are passed over."""
    train = source.splits["train"]
    return DataFacts(
        num_images=len(train.labels),
        num_classes=len(source.classes),
        channels=source.channels,
        side=_typical_side(train),
    )


def _typical_side(split: Split) -> int:
    """Median shorter side, px; 128 when no sampled image can be read (the audit will say why)."""
    if split.arrays is not None:
        return int(min(split.arrays.shape[1:3]))
    assert split.paths is not None
    num_paths, num_sampled = len(split.paths), min(len(split.paths), NUM_SAMPLED)
    sides = []
    for index in range(num_sampled):
        try:
            # the header alone: nothing is decoded, so that no bomb can go off
            sides.append(min(size_of(split.paths[index * num_paths // num_sampled])))
        except ImageError:
            # the audit names them
            continue
    return round(statistics.median(sides)) if sides else 128
