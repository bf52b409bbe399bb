"""Shared fixtures: a cache of its own for every test, and small image folders that can be learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the cache of the person who runs it."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VIVACE_CACHE", str(cache))
    return cache


def noisy_image(colour: Sequence[int], seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """A colour with noise, (width, height) = size: easily learnt, and no two alike."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(colour) + rng.normal(0, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_folder("name", per_class=8, splits=("train", "val")): a folder of three colours as classes."""

    def make(name: str = "colours", *, per_class: int = 8, splits: Sequence[str] = (), extension: str = "png") -> Path:
        root = tmp_path / name
        seed = 0
        for split in splits or ("",):
            for label, colour in COLOURS.items():
                folder = root / split / label
                folder.mkdir(parents=True)
                for index in range(per_class):
                    seed += 1
                    noisy_image(colour, seed).save(folder / f"{index:03d}.{extension}")
        return root

    return make


@pytest.fixture
def real_data() -> Path:
    """The folder with the unpacked real data sets; the test is skipped, and says so, where they are not."""
    root = Path(__file__).parent.parent / "data"
    if not (root / "cifar10" / "train").is_dir() or not (root / "flowers" / "train").is_dir():
        pytest.skip("the real data sets are not unpacked under data/")
    return root
