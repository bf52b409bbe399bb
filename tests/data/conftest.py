"""Fixtures: images and devices for tests of batches and augmentation, and a user without permissions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture
def make_images() -> Callable[..., Tensor]:
    """make_images(8, height=20, width=20, channels=3, smooth=False): uint8 [8, 3, 20, 20], channels_last, seeded."""

    def make(count: int, *, height: int = 20, width: int = 20, channels: int = 3, smooth: bool = False) -> Tensor:
        generator = torch.Generator().manual_seed(count + height + width)
        if smooth:
            pixels = 255 * torch.rand(count, channels, 5, 5, generator=generator)
            pixels = functional.interpolate(pixels, (height, width), mode="bilinear").round().to(torch.uint8)
        else:
            pixels = torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)
        return pixels.contiguous(memory_format=torch.channels_last)

    return make


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that everybody may enter; if the tests run as root, they give up root's permissions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        uid = os.geteuid()
        if uid == 0:
            os.seteuid(65534)
        yield folder
        if uid == 0:
            os.seteuid(0)
