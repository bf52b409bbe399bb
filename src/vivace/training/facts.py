"""A few facts about a data set, cheap to get: what the named recipes depend on (no torch here)."""

from __future__ import annotations

import statistics

from PIL import Image

from vivace.data.decode import OPENED, PillowGuard
from vivace.data.splits import DataSource, Split
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
            with PillowGuard(), Image.open(split.paths[index * num_paths // num_sampled], formats=OPENED) as image:
                sides.append(min(image.size))
        except Exception:
            # broken files make Pillow raise nearly anything; the audit names them
            continue
    return round(statistics.median(sides)) if sides else 128
