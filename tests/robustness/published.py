"""What the published code of the common corruptions made of a picture, and the random numbers that it used.

`published_corruptions.npz` holds some pixels of its results: `make_cifar_c.py` (32 px) and `make_imagenet_c.py`
(224 px, here 72) of github.com/hendrycks/robustness, with numpy's generators seeded, ImageMagick 6.9.11, OpenCV 5.0,
SciPy 1.17, scikit-image 0.26 and Pillow 13.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivace.robustness.corruptions.corrupt import NAMES
from vivace.robustness.corruptions.draws import Draws

__all__ = ["STEPS", "PublishedDraws", "picture", "published"]

# side in px → of which rows and columns pixels are kept
STEPS = {32: 5, 72: 9}


def picture(side: int) -> np.ndarray:
    """uint8 [side, side, 3]: slopes, a disk, a bar and texture; another one would do."""
    rows, columns = np.mgrid[:side, :side] / side
    image = np.stack([rows, columns, 1 - rows * columns], 2) * 200
    image[(rows - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.05] = (230, 40, 60)
    image[int(0.7 * side) : int(0.8 * side), side // 8 : -side // 8] = (20, 30, 200)
    texture = np.random.RandomState(3).uniform(-25, 25, image.shape)
    return np.clip(image + texture, 0, 255).astype(np.uint8)


def published(side: int, name: str) -> np.ndarray:
    """uint8 [5, H', W', 3]: every fifth or ninth row and column of the results for the severities 1 to 5."""
    with np.load(Path(__file__).with_name("published_corruptions.npz")) as file:
        results: np.ndarray = file[str(side)][NAMES.index(name)]
    return results


class PublishedDraws(Draws):
    """The numbers that the published code drew for one image, in its order; impulse noise has a newer generator."""

    def __init__(self, seed: int, name: str) -> None:
        self._legacy = np.random.RandomState(seed)
        self._newer = np.random.default_rng(seed) if name == "impulse_noise" else None

    def normal(self, *shape: int) -> Tensor:
        return _channels_first(self._legacy.normal(size=_channels_last(shape)), shape)

    def uniform(self, *shape: int) -> Tensor:
        if self._newer is not None:
            return _channels_first(self._newer.random(_channels_last(shape)), shape)
        return torch.from_numpy(self._legacy.random_sample(shape))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.from_numpy(self._legacy.randint(low, high, size=shape))

    def poisson(self, rates: Tensor) -> Tensor:
        counts = self._legacy.poisson(rates[0].permute(1, 2, 0).double().numpy())
        return _channels_first(counts, tuple(rates.shape))


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) < 4 else (shape[2], shape[3], shape[1])


def _channels_first(values: Any, shape: tuple[int, ...]) -> Tensor:
    array = np.asarray(values, np.float32)
    return torch.from_numpy(array if len(shape) < 4 else array.transpose(2, 0, 1)[None]).reshape(shape)
