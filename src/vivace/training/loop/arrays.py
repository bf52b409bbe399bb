"""The arrays that a run trains and validates on, taken from a cache."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np

from vivace.data.caching.cache import Cache
from vivace.data.caching.stored import Pixels
from vivace.data.holdout import hold_out, hold_out_sets
from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError
from vivace.notices import warn
from vivace.training.recipes.recipe import Recipe

__all__ = ["NUM_STATISTICS_IMAGES", "FileWatch", "TrainingData", "prepare_data", "sample"]

# enough images for a mean and a covariance with three digits
NUM_STATISTICS_IMAGES = 5000


@dataclass(frozen=True)
class TrainingData:
    """The arrays of a run: stored images, labels, and which of them are for training and validation."""

    cache: Cache
    preprocess: Preprocess
    train_indices: np.ndarray
    """int64, positions in the train split."""
    val_images_NHWC: Pixels
    val_labels_N: np.ndarray
    val_indices: np.ndarray | None
    """Positions in `val_images_NHWC`; None: all."""

    @property
    def train_labels_N(self) -> np.ndarray:  # noqa: N802
        """int64, of the images at `train_indices`."""
        return self.cache.splits["train"].labels_N[self.train_indices]

    @property
    def num_val(self) -> int:
        return len(self.val_labels_N) if self.val_indices is None else len(self.val_indices)

    def without_test(self) -> TrainingData:
        """The same data without the test split."""
        splits = {name: split for name, split in self.cache.splits.items() if name != "test"}
        return dataclasses.replace(self, cache=dataclasses.replace(self.cache, splits=splits))

    @property
    def num_test(self) -> int:
        return len(self.cache.splits["test"].labels_N) if "test" in self.cache.splits else 0


class FileWatch:
    """Warns, once, when files of the data are touched, changed, added or removed while a run trains on its cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._told = False

    def __call__(self) -> None:
        change = None if self._told else self._cache.change()
        if change is not None:
            self._told = True
            warn(f"{change}: the run goes on with the images that it began with. Train anew to use them as they are.")


def prepare_data(cache: Cache, recipe: Recipe, *, known_N: np.ndarray | None = None) -> TrainingData:
    """Hold out a validation split if there is none, and measure the mean and standard deviation of each channel.

    The test split is not used. known_N: as for `hold_out`.
    """
    train = cache.splits["train"]
    if "val" in cache.splits:
        val = cache.splits["val"]
        indices = np.arange(len(train.labels_N))
        data = TrainingData(cache, cache.preprocess, indices, val.images_NHWC, val.labels_N, None)
    else:
        of = partial(hold_out, train.labels_N)
        if cache.label_sets is not None:
            of = partial(hold_out_sets, train.labels_N, cache.label_sets)
        indices, held_out = of(train.digests_N, recipe.data.val_fraction, seed=recipe.seed, known_N=known_N)
        data = TrainingData(cache, cache.preprocess, indices, train.images_NHWC, train.labels_N, held_out)
    return dataclasses.replace(data, preprocess=_with_statistics(data, recipe))


def _with_statistics(data: TrainingData, recipe: Recipe) -> Preprocess:
    channels = data.cache.preprocess.channels
    if recipe.data.mean is not None and recipe.data.std is not None:
        if len(recipe.data.mean) != channels:
            raise ConfigError(
                f"data.mean and data.std have a value for each channel: got {len(recipe.data.mean)} for {channels}. "
                f"Give {channels} of each, or set data.channels={len(recipe.data.mean)}."
            )
        return dataclasses.replace(data.preprocess, mean=recipe.data.mean, std=recipe.data.std)
    if data.cache.preprocess.is_raw:
        return _with_raw_statistics(data)
    mean, std = _channel_statistics(sample(data))
    # a constant channel carries no information: do not divide by zero
    return dataclasses.replace(
        data.preprocess,
        mean=tuple(round(float(value), 4) for value in mean),
        std=tuple(round(max(float(value), 1 / 255), 4) for value in std),
    )


def _with_raw_statistics(data: TrainingData) -> Preprocess:
    """Six digits each, as the values may be of any size. A constant channel is not divided by zero."""
    preprocess = data.preprocess
    mean, std = (values / preprocess.white for values in _raw_statistics(sample(data)))
    if preprocess.white > 1:
        std = np.maximum(std, 1 / preprocess.white)
    else:
        # the rounding of a constant is no deviation
        std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)
    return dataclasses.replace(
        preprocess, mean=tuple(float(f"{m:.6g}") for m in mean), std=tuple(float(f"{s:.6g}") for s in std)
    )


def _raw_statistics(images_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, float64 [C], of images of any dtype; block by block."""
    blocks = [images_NHWC[start : start + 64] for start in range(0, len(images_NHWC), 64)]
    mean = sum(block.sum((0, 1, 2), dtype=np.float64) for block in blocks) / images_NHWC[..., 0].size
    squares = sum(((block - mean) ** 2).sum((0, 1, 2)) for block in blocks) / images_NHWC[..., 0].size
    return np.asarray(mean), np.sqrt(squares)


def _channel_statistics(images_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel on the 0..1 scale, float64 [C]; exact, from the histogram."""
    channels = images_NHWC.shape[-1]
    counts = np.stack([np.bincount(images_NHWC[..., c].reshape(-1), minlength=256) for c in range(channels)])
    fractions = counts / counts.sum(1, keepdims=True)
    values = np.arange(256) / 255
    mean = fractions @ values
    return mean, np.sqrt(fractions @ values**2 - mean**2)


def sample(data: TrainingData, num_images: int = NUM_STATISTICS_IMAGES) -> np.ndarray:
    """Up to `num_images` training images, evenly spread, [n, store, store, C]; fewer of many channels."""
    indices = data.train_indices
    # of many channels or bytes as many as take the memory of RGB
    count = min(max(8, num_images * 3 // max(3, data.cache.preprocess.channels)), num_images, len(indices))
    # up to the last image: images are ordered by class, and an integer stride would leave out the last classes
    spread = indices[np.arange(count) * len(indices) // count]
    images: np.ndarray = data.cache.splits["train"].images_NHWC[spread]
    return images
