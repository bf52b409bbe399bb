"""The inputs of a predictor: one image or many, their names, and loading them ahead in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from vivace.data.arrays import CHANNELS, arranged, array_of, is_tensor
from vivace.errors import DataError, ImageError

__all__ = ["Given", "Ready", "check_image", "is_encoded", "loaded", "name_of"]

T = TypeVar("T")
R = TypeVar("R")
WANTED = "Give a path, a file's bytes, a Pillow image, an array or a tensor, or a list of these"


@dataclass(frozen=True)
class Ready:
    """Preprocessed pixels of an image, [size, size, C]."""

    pixels: np.ndarray


@dataclass(frozen=True)
class Given:
    """The images of one call."""

    images: Iterable[Any]
    single: bool = False
    """A single image was given, not a list."""
    lent: bool = False
    """They come from an iterator, which may reuse the memory of an image for the next one."""

    @classmethod
    def of(cls, images: Any, raw: int | None = None) -> Given:
        """The images in one image, a batch or an iterable.

        raw: the number of channels of images that are kept as they are, where it is 1 also [N, H, W] are many; None:
        pictures of 1 to 4 channels.
        Raises DataError for anything else, ImageError for a tensor of another shape.
        """
        if is_tensor(images):
            array = array_of(images, raw)
            return cls([array], single=True) if array.ndim == 3 else cls(_checked_batch(array, raw))
        if (
            raw == 1
            and isinstance(images, np.ndarray)
            and images.ndim == 3
            and 1 not in (images.shape[0], images.shape[2])
        ):
            images = images[..., None]
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return cls(_checked_batch(images if raw is None else arranged(images, raw), raw))
        if _is_image(images):
            return cls([images], single=True)
        no_list = isinstance(images, Mapping | bytearray | memoryview) or hasattr(images, "read")
        if no_list or not isinstance(images, Iterable):
            raise DataError(f"not an image: got {_shown_type(images)}. {_how_to_fix(images)}.")
        return cls(images, lent=not isinstance(images, Sequence))


def _checked_batch(images: np.ndarray, raw: int | None = None) -> np.ndarray:
    """The batch itself: a list of a million views would take far more memory than tiny images."""
    if images.shape[3] not in (CHANNELS if raw is None else (raw,)):
        hint = ", as by numpy.moveaxis(array, 1, -1)" if images.shape[1] in CHANNELS else ""
        raise DataError(
            f"the array is not a batch of images: {images.dtype} {list(images.shape)}. Give [N, H, W, C] with "
            f"{'1 to 4' if raw is None else raw} channels{hint}."
        )
    if len(images) and 0 in images.shape:
        raise ImageError(f"the images are empty: {list(images.shape)}. Leave them out.", problem="empty")
    return images


def _is_image(value: Any) -> bool:
    return is_encoded(value) or isinstance(value, Image.Image | np.ndarray) or is_tensor(value)


def is_encoded(value: Any) -> bool:
    """Whether it is the path or the bytes of a file, which are immutable."""
    return isinstance(value, str | os.PathLike | bytes)


def check_image(value: Any) -> Any:
    """The value itself, an element of an iterable. Raises DataError unless it is one image."""
    if not _is_image(value):
        raise DataError(f"not an image: got {_shown_type(value)}. {_how_to_fix(value)}.")
    return value


def _shown_type(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _how_to_fix(value: Any) -> str:
    if hasattr(value, "read"):
        return "Give its bytes: file.read()"
    if isinstance(value, bytearray | memoryview):
        return "Give bytes(...) of it"
    if isinstance(value, Mapping):
        return "Give list(mapping.values())"
    return WANTED


def name_of(image: Any, index: int) -> str:
    """The name of an image in its prediction: its path, or "image 3" for the image at index 3."""
    return os.fsdecode(image) if isinstance(image, str | os.PathLike) else f"image {index}"


def loaded(
    images: Iterable[T], load: Callable[[T], R], *, batch_size: int, workers: int
) -> Iterator[tuple[list[T], list[R]]]:
    """Yields (images, loaded images) in batches; threads load the next batches meanwhile. Raises what `load` raises."""
    # imported here, because the import takes as long as decoding an image, and a single image needs no threads
    from concurrent.futures import ThreadPoolExecutor

    rest = iter(images)
    batches = iter(lambda: list(islice(rest, batch_size)), [])
    with ThreadPoolExecutor(workers) as pool:
        # two batches ahead keep the network busy, and bound the memory
        pending = [(batch, [pool.submit(load, image) for image in batch]) for batch in islice(batches, 2)]
        while pending:
            batch, futures = pending.pop(0)
            results = [future.result() for future in futures]
            following = next(batches, None)
            if following is not None:
                pending.append((following, [pool.submit(load, image) for image in following]))
            yield batch, results
