"""Images that are read one by one from the user's object: once for their digests, and again when they are decoded."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vivace.data.objects.pixels import Content, Kind, check_kind, content_of, shown_kind
from vivace.data.objects.seeds import seeded
from vivace.data.text import count_of
from vivace.data.workers import EMPTY_DIGEST, digest_of
from vivace.errors import DataError, ImageError, first_line

__all__ = ["GivenItems", "Pair", "Progress", "Raised", "Read", "check_same_twice", "kept_line", "raised_by", "read_all"]

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
    pixels: str | None = None
    """As of `Data`."""
    anew: bool = False
    """A read may give another image than the one before."""
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
            with seeded(position) if self.anew else contextlib.nullcontext():
                data = _content(self.pair(position)[0], self.pixels).data
        except Raised as error:
            raise ImageError(f"item {position} of {self.name} can't be read again: {error}", problem="raised") from None
        if not self.anew and _digest(data) != self.digests[row].decode():
            raise _random(self.name, position)
        return data

    def read_anew(self, row: int, seed: int) -> bytes | np.ndarray:
        """The contents of an image as it is with these global random numbers. Raises ImageError."""
        position = int(self.positions_N[row])
        try:
            with seeded(seed):
                return _content(self.pair(position)[0], self.pixels).data
        except Raised as error:
            raise ImageError(f"item {position} of {self.name} can't be read again: {error}", problem="raised") from None

    def select(self, rows: np.ndarray) -> GivenItems:
        """Those at these positions, int64 [n]."""
        return GivenItems(
            self.pair,
            self.name,
            self.positions_N[rows],
            self.digests[rows],
            self.sizes[rows],
            self.pixels,
            self.anew,
            self.errors,
        )


class Read(NamedTuple):
    """All images of an object, read once."""

    items: GivenItems
    """Without those that the user's code raised for."""
    labels: list[Any]
    is_grey: bool
    """All images have one channel."""
    kind: Kind
    """Of images that are kept as they are."""
    raised: dict[int, Raised]
    """Position → what the user's code raised."""


def read_all(
    pair: Pair,
    positions: Sequence[int],
    name: str,
    progress: Progress,
    notes: list[str],
    pixels: str | None = None,
    *,
    anew: bool = False,
) -> Read:
    """Read the images at these positions, in order; nothing but their digests, sizes and labels is kept.

    progress: called with (images read, images in all). pixels: as of `Data`. Images of another kind than most of them
    can't be used, such as of another number of channels. anew: items are random, and read with the global random
    numbers that belong to their positions. Raises DataError for what `pair` raises it, and where memory
    runs out.
    """
    kept: list[int] = []
    labels: list[Any] = []
    digests: list[str] = []
    sizes: list[tuple[int, int]] = []
    errors: dict[int, ImageError] = {}
    raised: dict[int, Raised] = {}
    kinds: dict[int, Kind] = {}
    is_grey, num_inexact, note = True, 0, ""
    for count, position in enumerate(positions):
        if count % STEP == 0:
            progress(count, len(positions))
        digest, size = EMPTY_DIGEST, (0, 0)
        try:
            with seeded(position) if anew else contextlib.nullcontext():
                image, label = pair(position)
            try:
                found = _content(image, pixels)
            except ImageError as error:
                errors[position] = error
            else:
                digest = _digest(found.data)
                num_inexact += not found.exact
                kinds[position], note = found.kind, note or found.note
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
            "rounded (vivace.Data(..., pixels='float32') keeps them)"
        )
    kind = _common(kinds, errors)
    if kind is not None:
        notes.append(kept_line(name, kind, note))
    items = GivenItems(
        pair,
        name,
        np.asarray(kept, dtype=np.int64),
        np.asarray(digests, dtype="S32"),
        np.asarray(sizes, dtype=np.int32).reshape(-1, 2),
        pixels,
        anew,
        errors,
    )
    return Read(items, labels, is_grey and len(kept) > len(errors), kind, raised)


def kept_line(name: str, kind: Kind, axis: str) -> str:
    """What is said of images that are kept as they are. axis: first, last or "", which of an array has the channels."""
    where = f", the {axis} axis" if axis else ""
    return f"the images of {name} have {shown_kind(kind)}{where}: they are kept as they are"


def _common(kinds: dict[int, Kind], errors: dict[int, ImageError]) -> Kind:
    """The kind of most images; `errors` gets those of other kinds."""
    counts = Counter(kinds.values())
    if len(counts) < 2:
        return next(iter(counts), None)
    wanted = counts.most_common(1)[0][0]
    for position, kind in kinds.items():
        try:
            check_kind(kind, wanted, f"item {position}")
        except ImageError as error:
            errors[position] = error
    return wanted


def check_same_twice(
    pair: Pair, positions: Sequence[int], name: str, pixels: str | None = None, *, anew: bool = False
) -> None:
    """Raise DataError if some items differ when they are read again with another seed, or if none can be used.

    anew: they may differ.
    """
    chosen = np.unique(np.linspace(0, len(positions) - 1, min(NUM_SAMPLED, len(positions))).round().astype(int))
    started, problem = time.monotonic(), None
    num_read = 0
    for count, position in enumerate(positions[index] for index in chosen.tolist()):
        if count >= MIN_SAMPLED and time.monotonic() - started > SAMPLE_SECONDS:
            break
        try:
            first, second = (_seen(pair, position, seed, pixels) for seed in (2 * count, 2 * count + 1))
        except (ImageError, Raised) as error:
            problem = problem or f"item {position}: {error}"
            continue
        num_read += 1
        if first != second and not anew:
            raise _random(name, position)
    if not num_read and problem:
        raise DataError(f"no image of {name} can be used; {problem}")


def _seen(pair: Pair, position: int, seed: int, pixels: str | None) -> tuple[str, Any]:
    with seeded(seed):
        image, label = pair(position)
        return _digest(_content(image, pixels).data), label


def _content(image: Any, pixels: str | None) -> Content:
    """The contents of an image. Raises ImageError, or Raised for an exception of another library."""
    try:
        return content_of(image, pixels)
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
        "data set without its random transform, as by `dataset.transform = None`: vivace augments images by itself. To "
        "train with it, reading each image anew in every epoch: vivace.train(dataset, cache=False)."
    )
