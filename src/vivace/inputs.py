"""What a predictor may be called with: one image or many, what each is called, and its pixels made ahead by threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from vivace.data.arrays import CHANNELS, array_of, is_tensor
from vivace.errors import DataError

__all__ = ["Given", "Ready", "check_image", "is_encoded", "loaded", "name_of"]

T = TypeVar("T")
R = TypeVar("R")
WANTED = "Give a path, a file's bytes, a Pillow image, an array or a tensor, or a list of these"


@dataclass(frozen=True)
class Ready:
    """Pixels that were made when their image came."""

    pixels: np.ndarray


@dataclass(frozen=True)
class Given:
    """The images of one call."""

    images: Iterable[Any]
    single: bool = False
    """One image that was not in a list."""
    lent: bool = False
    """They come one after the other, and what comes next may be in the memory of the one before."""

    @classmethod
    def of(cls, images: Any) -> Given:
        """One image, a batch or an iterable. Raises DataError for anything else, ImageError for another batch."""
        if is_tensor(images):
            array = array_of(images)
            return cls([array], single=True) if array.ndim == 3 else cls(list(array))
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return cls(list(_checked_batch(images)))
        if _is_image(images):
            return cls([images], single=True)
        no_list = isinstance(images, Mapping | bytearray | memoryview) or hasattr(images, "read")
        if no_list or not isinstance(images, Iterable):
            raise DataError(f"no image: got {_shown_type(images)}. {_mend(images)}.")
        return cls(images, lent=not isinstance(images, Sequence))


def _checked_batch(images: np.ndarray) -> np.ndarray:
    if images.shape[3] not in CHANNELS:
        hint = ", or turn it: numpy.moveaxis(array, 1, -1)" if images.shape[1] in CHANNELS else ""
        raise DataError(
            f"the array is no batch of images: {images.dtype} {list(images.shape)}. Give [N, H, W, C] with 1 to 4 "
            f"channels{hint}."
        )
    return images


def _is_image(value: Any) -> bool:
    return is_encoded(value) or isinstance(value, Image.Image | np.ndarray) or is_tensor(value)


def is_encoded(value: Any) -> bool:
    """Whether it is a file's path or its bytes, which nobody changes."""
    return isinstance(value, str | os.PathLike | bytes)


def check_image(value: Any) -> Any:
    """A part of an iterable. Raises DataError unless it is one image."""
    if not _is_image(value):
        raise DataError(f"no image: got {_shown_type(value)}. {_mend(value)}.")
    return value


def _shown_type(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _mend(value: Any) -> str:
    if hasattr(value, "read"):
        return "Give its bytes: file.read()"
    if isinstance(value, bytearray | memoryview):
        return "Give bytes(...) of it"
    if isinstance(value, Mapping):
        return "Give list(mapping.values())"
    return WANTED


def name_of(image: Any, index: int) -> str:
    """What a prediction's `path` says: the path, or "image 3" for what was at [3]."""
    return os.fsdecode(image) if isinstance(image, str | os.PathLike) else f"image {index}"


def loaded(
    images: Iterable[T], load: Callable[[T], R], *, batch_size: int, workers: int
) -> Iterator[tuple[list[T], list[R]]]:
    """Batches of images, with what `load` makes of each; threads make the next while this one is used.

    What `load` raises is raised here.
    """
    # imported here: for a single image there are no threads, and the import takes as long as decoding it
    from concurrent.futures import ThreadPoolExecutor

    rest = iter(images)
    batches = iter(lambda: list(islice(rest, batch_size)), [])
    with ThreadPoolExecutor(workers) as pool:
        # two batches ahead: enough to keep the network busy, and memory bounded however many images there are
        pending = [(batch, [pool.submit(load, image) for image in batch]) for batch in islice(batches, 2)]
        while pending:
            batch, futures = pending.pop(0)
            results = [future.result() for future in futures]
            following = next(batches, None)
            if following is not None:
                pending.append((following, [pool.submit(load, image) for image in following]))
            yield batch, results
