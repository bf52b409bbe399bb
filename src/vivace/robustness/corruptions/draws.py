"""The random numbers of a corruption, from a generator on the device of the images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Draws"]


class Draws:
    """Random tensors, float32 or int64, that depend on `key` and the kind of device alone.

    key: integers >= 0, such as a seed, the number of a corruption, its severity and the number of a batch.
    """

    def __init__(self, key: Sequence[int], device: torch.device) -> None:
        (state,) = np.random.SeedSequence(list(key)).generate_state(1, np.uint64)
        self._device = device
        # a generator takes 63 bits on every device
        self._generator = torch.Generator(device).manual_seed(int(state >> np.uint64(1)))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.randn(shape, generator=self._generator, device=self._device)

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1)."""
        return torch.rand(shape, generator=self._generator, device=self._device)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """In low … high - 1."""
        return torch.randint(low, high, shape, generator=self._generator, device=self._device)

    def poisson(self, rates: Tensor) -> Tensor:
        """Counts of events with these expectations."""
        return torch.poisson(rates, generator=self._generator)
