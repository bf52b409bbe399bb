"""Time for preprocessing: from an image file to the network's input."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivace.config import check_range
from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError

__all__ = ["PreprocessTimings", "time_preprocessing"]


@dataclass(frozen=True, kw_only=True)
class PreprocessTimings:
    """Times for preprocessing encoded images, one after another on one processor."""

    samples_ms: tuple[tuple[float, ...], ...]
    """One row for each pass over the images, one column for each image."""

    @property
    def p50_ms(self) -> float:
        """ms per image: the median over the images of each one's median over the passes."""
        return float(np.median(np.median(self.samples_ms, axis=0)))


def time_preprocessing(preprocess: Preprocess, images: Sequence[Path | bytes], *, passes: int = 5) -> PreprocessTimings:
    """Time `Preprocess.load`: a file is read, decoded, cropped and resized to uint8 [size, size, channels].

    images: paths or encoded files. One pass over them is not counted, so that files come from the page cache and not
    from the disk. Raises ImageError for one that can't be decoded.
    """
    check_range("passes", passes, 1)
    if not images:
        raise ConfigError("there are no images to time the preprocessing: got an empty list. Give some paths.")
    samples: list[tuple[float, ...]] = []
    for _ in range(passes + 1):
        times = []
        for image in images:
            start = time.perf_counter()
            preprocess.load(image)
            times.append((time.perf_counter() - start) * 1e3)
        samples.append(tuple(times))
    return PreprocessTimings(samples_ms=tuple(samples[1:]))
