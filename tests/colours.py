"""Images that are easy to learn: a colour for each class, with noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


def noisy_image(colour: Sequence[int], seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """An image of a colour with noise, (width, height) = size; all differ, and the classes are easy to learn."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(colour) + rng.normal(0, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def colour_folder(root: Path, *, per_class: int = 8, splits: Sequence[str] = (), extension: str = "png") -> Path:
    """Write a folder with a class per colour, in splits if any are named."""
    seed = 0
    for split in splits or ("",):
        for label, colour in COLOURS.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(per_class):
                seed += 1
                noisy_image(colour, seed).save(folder / f"{index:03d}.{extension}")
    return root


def coloured_arrays(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a colour for each of three classes."""
    labels = np.arange(count) % 3
    found = np.random.default_rng(0).integers(0, 60, (count, 16, 16, 3)).astype(np.uint8)
    for label in range(3):
        found[labels == label, :, :, label] += 120
    return found, labels
