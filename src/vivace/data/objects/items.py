"""Images that are read one by one from the user's object: once for their digests, and again when they are decoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vivace.data.objects.pixels import Content, content_of
from vivace.data.objects.seeds import seeded
from vivace.data.text import count_of
from vivace.data.workers import EMPTY_DIGEST, digest_of
from vivace.errors import DataError, ImageError, first_line

__all__ = ["GivenItems", "Pair", "Progress", "Raised", "Read", "check_same_twice", "raised_by", "read_all"]

Progress = Callable[[int, int], None]
# position in the object → (image, label or None); raises Raised for an item, DataError for all of the data
Pair = Callable[[int], tuple[Any, Any]]
# items that are read twice with different seeds, evenly spread; fewer, where reading them takes longer
NUM_SAMPLED, MIN_SAMPLED, SAMPLE_SECONDS = 32, 8, 5.0
# images between two reports of progress
STEP = 50


class Raised(Exception):
    """What the user's code raised for one item; the message tells it."""


def raised_by(error: Exception) -> Raised:
    """The exception as one item's."""
    return Raised(f"{type(error).__name__}: {first_line(error)}")


@dataclass
class GivenItems:
    """Images of the user's object, as `splits.Items` has them."""

    pair: Pair
    name: str
    """Of the object, for messages."""
    positions_N: np.ndarray
    """int64, which of the object's items these are."""
    digests: np.ndarray
    """As of `splits.Items`, which the images are held to when they are read again."""
    sizes: np.ndarray
    errors: dict[int, ImageError] = field(default_factory=dict)
    """Position → why the image can't be used."""

    def __len__(self) -> int:
        return len(self.positions_N)

    def read(self, row: int) -> bytes | np.ndarray:
        """The contents of an image. Raises ImageError; DataError if they are others than when it was read first."""
        position = int(self.positions_N[row])
        if position in self.errors:
            raise self.errors[position]
        try:
            data = _content(self.pair(position)[0]).data
        except Raised as error:
            raise ImageError(f"item {position} of {self.name} can't be read again: {error}", problem="raised") from None
        if _digest(data) != self.digests[row].decode():
            raise _random(self.name, position)
        return data

    def select(self, rows: np.ndarray) -> GivenItems:
        """Those at these positions, int64 [n]."""
        return GivenItems(
            self.pair, self.name, self.positions_N[rows], self.digests[rows], self.sizes[rows], self.errors
        )


class Read(NamedTuple):
    """All images of an object, read once."""

    items: GivenItems
    """Without those that the user's code raised for."""
    labels: list[Any]
    is_grey: bool
    """All images have one channel."""
    raised: dict[int, Raised]
    """Position → what the user's code raised."""


def read_all(pair: Pair, positions: Sequence[int], name: str, progress: Progress, notes: list[str]) -> Read:
    """Read the images at these positions, in order; nothing but their digests, sizes and labels is kept.

    progress: called with (images read, images in all). Raises DataError for what `pair` raises it, and where memory
    runs out.
    """
    kept: list[int] = []
    labels: list[Any] = []
    digests: list[str] = []
    sizes: list[tuple[int, int]] = []
    errors: dict[int, ImageError] = {}
    raised: dict[int, Raised] = {}
    is_grey, num_inexact = True, 0
    for count, position in enumerate(positions):
        if count % STEP == 0:
            progress(count, len(positions))
        digest, size = EMPTY_DIGEST, (0, 0)
        try:
            image, label = pair(position)
            try:
                found = _content(image)
            except ImageError as error:
                errors[position] = error
            else:
                digest = _digest(found.data)
                num_inexact += not found.exact
                is_grey = is_grey and isinstance(found.data, np.ndarray) and found.data.shape[2] == 1
                if isinstance(found.data, np.ndarray):
                    size = (found.data.shape[0], found.data.shape[1])
        except Raised as error:
            raised[position] = error
            continue
        except MemoryError:
            raise DataError(
                f"not enough memory to read item {position} of {name}. Free some, or give smaller images."
            ) from None
        kept.append(position)
        labels.append(label)
        digests.append(digest)
        sizes.append(size)
    progress(len(positions), len(positions))
    if num_inexact:
        notes.append(
            f"{count_of(num_inexact, 'image')} of {name} held floats between the 256 levels of 8 bits: they were "
            "rounded"
        )
    items = GivenItems(
        pair,
        name,
        np.asarray(kept, dtype=np.int64),
        np.asarray(digests, dtype="S32"),
        np.asarray(sizes, dtype=np.int32).reshape(-1, 2),
        errors,
    )
    return Read(items, labels, is_grey and len(kept) > len(errors), raised)


def check_same_twice(pair: Pair, positions: Sequence[int], name: str) -> None:
    """Raise DataError if some items differ when they are read again with another seed, or if none can be used."""
    chosen = np.unique(np.linspace(0, len(positions) - 1, min(NUM_SAMPLED, len(positions))).round().astype(int))
    started, problem = time.monotonic(), None
    num_read = 0
    for count, position in enumerate(positions[index] for index in chosen.tolist()):
        if count >= MIN_SAMPLED and time.monotonic() - started > SAMPLE_SECONDS:
            break
        try:
            first, second = (_seen(pair, position, seed) for seed in (2 * count, 2 * count + 1))
        except (ImageError, Raised) as error:
            problem = problem or f"item {position}: {error}"
            continue
        num_read += 1
        if first != second:
            raise _random(name, position)
    if not num_read and problem:
        raise DataError(f"no image of {name} can be used; {problem}")


def _seen(pair: Pair, position: int, seed: int) -> tuple[str, Any]:
    with seeded(seed):
        image, label = pair(position)
        return _digest(_content(image).data), label


def _content(image: Any) -> Content:
    """The contents of an image. Raises ImageError, or Raised for an exception of another library."""
    try:
        return content_of(image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise raised_by(error) from error


def _digest(data: bytes | np.ndarray) -> str:
    """As of a file's bytes, or of an array."""
    return digest_of(np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data)


def _random(name: str, position: int) -> DataError:
    return DataError(
        f"the data change from read to read: item {position} of {name} was another when it was read again. Give the "
        "data set without its random transform, as by `dataset.transform = None`: vivace augments images by itself."
    )
