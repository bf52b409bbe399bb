"""The images of a folder as the objects that people have: data sets, arrays, frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["Pairs", "frame_rows", "pairs_of", "square_arrays"]


class Pairs:
    """A map-style data set of (image, label), as a program has it; `transform` is applied to each image."""

    def __init__(
        self,
        pairs: Sequence[tuple[Any, Any]],
        classes: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.pairs, self.transform, self.num_read = list(pairs), transform, 0
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.num_read += 1
        image, label = self.pairs[index]
        return image if self.transform is None else self.transform(image), label


def pairs_of(root: Path) -> list[tuple[Image.Image, int]]:
    """The images of a folder of class folders, in their order, with the numbers of their classes."""
    names = sorted({path.parent.name for path in root.rglob("*.png")})
    pairs = []
    for path in sorted(root.rglob("*.png")):
        with Image.open(path) as image:
            pairs.append((image.convert("RGB"), names.index(path.parent.name)))
    return pairs


def square_arrays(pairs: Sequence[tuple[Image.Image, int]], side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N, side, side, 3], labels int64 [N])."""
    images = np.stack([np.asarray(image.resize((side, side))) for image, _ in pairs])
    return images, np.array([label for _, label in pairs])


def frame_rows(root: Path) -> list[dict[str, Any]]:
    """path, label of each image of a folder."""
    return [{"path": str(path), "label": path.parent.name} for path in sorted(root.rglob("*.png"))]
