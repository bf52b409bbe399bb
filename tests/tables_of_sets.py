"""A table of small images with sets of labels that can be learnt: coloured squares on grey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 190, 60), "blue": (50, 60, 210)}


def colour_table(folder: Path, *, count: int = 160, side: int = 16, seed: int = 0) -> Path:
    """A CSV of `count` images with up to three coloured quarters, labels separated by semicolons; [] where none is."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    half, lines = side // 2, ["file_name,labels"]
    for index in range(count):
        names = [name for name in COLOURS if rng.random() < 0.5]
        pixels = np.full((side, side, 3), 128.0)
        for place, name in zip(rng.permutation(4), names, strict=False):
            top, left = (place // 2) * half, (place % 2) * half
            pixels[top : top + half, left : left + half] = COLOURS[name]
        pixels += rng.normal(0, 12, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{';'.join(names) or '[]'}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"
