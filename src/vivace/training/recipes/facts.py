"""What the named recipes depend on: a few facts about a data set that cost little to get (no torch here)."""

from __future__ import annotations

import statistics
from collections.abc import Collection

from vivace.data.decoding.decode import size_of
from vivace.data.decoding.raw import is_raw
from vivace.data.splits import DataSource, Split
from vivace.errors import ImageError
from vivace.hardware import cpu_features, num_cpus
from vivace.models.pretrained import available_without_download
from vivace.training.recipes.named import PACKAGED_NETWORK, DataFacts

__all__ = ["measure_facts", "training_speed"]

# the typical size is taken from the headers of this many files, evenly spread
NUM_SAMPLED = 64
# of two cores that have an instruction, relative to two with AMX: images per second of the large network of `fast`, in
# the faster of bf16 and fp32 with what vivace's kernels gain. Measured for the first two; the others follow from the
# width of their products. docs/log/2026-11-29.md
SPEEDS = (("amx_bf16", 1.0), ("avx512_bf16", 0.45), ("avx512f", 0.25), ("avx2", 0.12))
MEASURED_CPUS = 2


def measure_facts(source: DataSource) -> DataFacts:
    """The facts of a data source; only headers of files are read, and unreadable files are skipped."""
    train = source.splits["train"]
    return DataFacts(
        num_images=len(train.labels),
        num_classes=len(source.classes),
        channels=source.channels,
        side=_typical_side(train),
        raw=is_raw(source.pixels, source.channels),
        speed=training_speed(num_cpus(), cpu_features()),
        weights_at_hand=available_without_download(PACKAGED_NETWORK) is not None,
    )


def training_speed(num_cpus: int, features: Collection[str]) -> float:
    """How fast so many processors with these instructions train, as `DataFacts.speed`. 1 where none of them is known.

    Of a table, which is all that is known before the network is built; a step that is timed then may say otherwise
    (`training.planned.fitting_network`).
    """
    speed = next((speed for feature, speed in SPEEDS if feature in features), 1.0)
    return min(1.0, speed * num_cpus / MEASURED_CPUS)


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
