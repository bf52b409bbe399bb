"""Heat maps of the worst mistakes, for a report, which is not to wait for them long."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from vivace.bundle import Bundle
from vivace.errors import first_line
from vivace.heatmaps.mapper import HeatMapper
from vivace.heatmaps.pictures import panels
from vivace.metrics.measured import Heat, Measured, mistaken_classes

__all__ = ["heat_of"]

# as many as a report shows
NUM_MISTAKES = 24
BATCH_SIZE = 8
# once these have passed, further mistakes have none
MAX_SECONDS = 10.0


def heat_of(bundle: Bundle, measured: Measured, thresholds: Sequence[float] = (), *, device: str = "auto") -> Heat:
    """The heat maps of the most confident mistakes, of the class that was predicted; of sets of labels the wrong label.

    Never raises: a report is worth having without them, and says why they are missing.
    """
    asked = mistaken_classes(measured, thresholds, NUM_MISTAKES)
    if not asked:
        return Heat()
    try:
        mapper = HeatMapper(bundle, device=device)
        started = time.perf_counter()
        rows, pictures = list(asked), {}
        for start in range(0, len(rows), BATCH_SIZE):
            some = rows[start : start + BATCH_SIZE]
            images_NHWC = np.ascontiguousarray(measured.images(np.array(some, np.int64)))
            maps_NHW = mapper(images_NHWC, np.array([asked[row] for row in some], np.int64))
            for row, image, map_HW in zip(some, images_NHWC, maps_NHW, strict=True):
                pictures[row] = panels(image, [map_HW])[1]
            if time.perf_counter() - started > MAX_SECONDS:
                break
    except Exception as error:
        return Heat(missing=first_line(error) or type(error).__name__)
    return Heat(pictures=pictures, method=mapper.method, layer=mapper.layer, side=mapper.side)
