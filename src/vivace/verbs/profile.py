"""vivace.profile: where a bundle's time goes, layer by layer, and which kernels ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vivace.bundle import Bundle, load_bundle
from vivace.config import check_range
from vivace.data.place import AnyData
from vivace.exporting.parity import parity_images
from vivace.profiling.profile import Profile, profile_layers

__all__ = ["profile"]


def profile(
    bundle: Bundle | str | Path,
    data: AnyData | None = None,
    *,
    batch_size: int = 1,
    calls: int = 20,
    threads: int | None = None,
    timeout: float = 600.0,
    cache_dir: str | Path | None = None,
) -> Profile:
    """The profile of a bundle on its runtime in its precision, on the CPU, in a process of its own.

    data: images to run it on, as for `train`: test, else val, else all; None: generated ones. The time of a layer does
    not depend on them, but for denormal numbers. batch_size: images in a call. calls: calls that are counted, after a
    few others; a layer's time is their median. threads: processors that it may use; None: all. timeout: seconds after
    which the process is ended.
    Raises BundleError for a bundle that can't be used, ConfigError for a value out of range or a runtime that can't be
    profiled, VivaceError if profiling fails or takes too long.
    """
    for name, value in (("batch_size", batch_size), ("calls", calls), ("threads", threads), ("timeout", timeout)):
        check_range(name, value, 1)
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    images_NHWC, _ = parity_images(bundle, data, cache_dir=Path(cache_dir) if cache_dir is not None else None)
    batch = np.resize(images_NHWC, (batch_size, *images_NHWC.shape[1:]))
    return profile_layers(bundle, batch, calls=calls, threads=threads, timeout=timeout)
