"""Tensors whose products and sums are exact, and another number of threads for a while: for tests of kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def whole_numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Small whole numbers, channels_last: every partial sum of products is exact in float32."""
    x = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    """torch has so many threads while it is entered."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
