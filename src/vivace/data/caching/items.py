"""Decodes images that are read one by one, in this process and in order: a user's code may allow nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from vivace.data.decoding.decode import PillowGuard, check_size
from vivace.data.preprocess import Preprocess
from vivace.data.splits import Items
from vivace.data.workers import Decoded, digest_of, is_one_colour
from vivace.errors import DataError, ImageError

__all__ = ["decode_items", "stored_item"]

# images between two reports of progress
STEP = 50


def decode_items(
    items: Items,
    names: Sequence[str],
    preprocess: Preprocess,
    images_NHWC: np.ndarray,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> Decoded:
    """Decode `items` into `images_NHWC`, [N, store_size, store_size, C], which may lie in a file.

    names: of the images, for messages. progress: called with the number of newly decoded images. Raises DataError if
    memory runs out, or if an item is not what it was when it was read first.
    """
    digests = items.digests.astype(str).tolist()
    result = Decoded(digests, pixel_digests=list(digests))
    for row, name in enumerate(names):
        try:
            stored = stored_item(items.read(row), name, preprocess)
        except ImageError as error:
            result.problems[row] = (error.problem, f"{name}: {error}")
        except MemoryError:
            raise DataError(f"not enough memory to decode {name}. Free some, or give smaller images.") from None
        else:
            images_NHWC[row] = stored
            if is_one_colour(stored, preprocess.fit):
                result.notes[row] = ["one_colour"]
            else:
                result.pixel_digests[row] = digest_of(stored)
        if row % STEP == STEP - 1:
            progress(STEP)
    progress(len(names) % STEP)
    return result


def stored_item(data: bytes | np.ndarray, name: str, preprocess: Preprocess) -> np.ndarray:
    """The stored pixels of one image. Raises ImageError."""
    if isinstance(data, bytes):
        with preprocess.decoding(data) as (_, picture):
            return preprocess.store(picture, name=name)
    if preprocess.is_raw:
        return preprocess.store(data, name=name)
    check_size(*data.shape[1::-1], max_pixels=preprocess.max_pixels)
    with PillowGuard():
        return preprocess.store(data if data.shape[2] in (1, 3) else Image.fromarray(data), name=name)
