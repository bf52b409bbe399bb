"""Images that are unlike any data set, made from one: noise, shuffled patches, flat colours."""

from __future__ import annotations

import numpy as np

__all__ = ["NUM_GENERATED", "generated_images"]

# of each kind
NUM_GENERATED = 64
# patches each way
GRID = 4
SEED = 0


def generated_images(images_NHWC: np.ndarray, *, count: int = NUM_GENERATED) -> dict[str, np.ndarray]:
    """Name → images like images_NHWC in number (at most `count`), size, dtype and range of values, but in nothing else.

    uniform: every value at random; normal: normal noise with their mean and deviation; patches: 4 × 4 patches of an
    image, shuffled; flat: one colour of theirs. The same ones every time.
    """
    some = images_NHWC[:count]
    rng = np.random.default_rng(SEED)
    low, high = (getattr(some.astype(np.float64), name)((0, 1, 2)) for name in ("min", "max"))
    mean, deviation = some.mean((0, 1, 2), dtype=np.float64), some.std((0, 1, 2), dtype=np.float64)
    noise = rng.normal(mean, deviation, some.shape).clip(low, high)
    kinds = {
        "uniform noise": rng.uniform(low, high, some.shape),
        "normal noise": noise,
        "shuffled patches": np.stack([_shuffled(image, rng) for image in some]),
        "flat colours": np.broadcast_to(_colours(some, rng), some.shape),
    }
    return {name: _as(values, some.dtype) for name, values in kinds.items()}


def _shuffled(image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width, channels = image_HWC.shape
    tall, wide = height // GRID, width // GRID
    if not tall or not wide:
        return rng.permutation(image_HWC.reshape(-1, channels)).reshape(image_HWC.shape)
    inner = image_HWC[: tall * GRID, : wide * GRID]
    cells = inner.reshape(GRID, tall, GRID, wide, channels).swapaxes(1, 2).reshape(GRID * GRID, tall, wide, channels)
    cells = rng.permutation(cells).reshape(GRID, GRID, tall, wide, channels).swapaxes(1, 2)
    shuffled = image_HWC.copy()
    shuffled[: tall * GRID, : wide * GRID] = cells.reshape(inner.shape)
    return shuffled


def _colours(images_NHWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    count, height, width, _ = images_NHWC.shape
    rows, columns = rng.integers(0, height, count), rng.integers(0, width, count)
    return images_NHWC[np.arange(count), rows, columns][:, None, None]


def _as(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    rounded = np.rint(values) if np.issubdtype(dtype, np.integer) else values
    return np.ascontiguousarray(rounded.astype(dtype))
