"""Images that are easily learnt: a colour for each class, with noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


def noisy_image(colour: Sequence[int], seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """A colour with noise, (width, height) = size: easily learnt, and no two alike."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(colour) + rng.normal(0, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
