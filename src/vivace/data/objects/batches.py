"""Images in one array with their labels in another: NumPy's, torch's, or what NumPy makes an array of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vivace.data.arrays import is_tensor
from vivace.data.decoding.raw import as_kept, check_finite
from vivace.data.objects.found import Found, in_order
from vivace.data.objects.items import Progress, kept_line
from vivace.data.objects.kinds import name_of
from vivace.data.objects.labels import label_of
from vivace.data.objects.pixels import (
    COLOURS,
    EXACT,
    EXACT_HALF,
    Kind,
    exact_levels,
    raw_kind,
    with_channels_last,
)
from vivace.data.objects.several import given_label, named
from vivace.data.place import Data
from vivace.data.splits import Arrays
from vivace.errors import DataError, ImageError

__all__ = ["open_arrays"]

# images that are converted at once, of at most so many bytes unless it is one
BLOCK, BLOCK_BYTES = 256, 64 * 2**20
# the most that `data.max_pixels` allows for one image
MOST_PIXELS = 2_000_000_000
# labels of one image that are several
VECTORS = (list, tuple, set, frozenset, np.ndarray)
WANTED = "Give uint8 [N, H, W, C] or [N, H, W], or floats from 0 to 1"


class Converted:
    """uint8 [N, H, W, C] of an array of another type or order of axes, converted when it is indexed."""

    def __init__(self, array_NHWC: np.ndarray, tolerance: float) -> None:
        self._array_NHWC, self._tolerance = array_NHWC, tolerance
        self.shape: tuple[int, ...] = array_NHWC.shape
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._array_NHWC)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self.levels(rows)[0]

    def levels(self, rows: Any) -> tuple[np.ndarray, bool]:
        """(uint8 of these rows, whether that was exact). Raises ImageError."""
        values = self._array_NHWC[rows]
        if values.dtype.kind == "f":
            return exact_levels(values, self._tolerance) if values.size else (values.astype(np.uint8), True)
        values = np.ascontiguousarray(values)
        return (values.astype(np.uint8) * 255 if values.dtype == bool else values), True


class Kept:
    """Images that are kept as they are, [N, H, W, C], contiguous when they are indexed."""

    def __init__(self, array_NHWC: np.ndarray, dtype: str) -> None:
        self._array_NHWC, self.shape, self.dtype = array_NHWC, array_NHWC.shape, np.dtype(dtype)

    def __len__(self) -> int:
        return len(self._array_NHWC)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return as_kept(self._array_NHWC[rows], self.dtype.name)


def open_arrays(pair: tuple[Any, Any], split: str, progress: Progress, data: Data) -> Found:
    """What two arrays hold: images [N, H, W, C], [N, H, W] or [N, C, H, W], and a label for each.

    data: the options. uint16, other numbers of channels than 1 and 3, and floats of which it says so are kept. Other
    floats from 0 to 1 are multiplied by 255; which of them were rounded is noted. Raises DataError.
    """
    name, notes = name_of(pair), list[str]()
    images_NHWC, half, kind = _images(pair[0], data.pixels)
    labels = _labels(pair[1], data.multi_label)
    if len(labels) != len(images_NHWC):
        raise DataError(
            f"images and labels differ in number: got {len(images_NHWC):,} and {len(labels):,}. Give a label for each "
            "image."
        )
    if not len(labels):
        raise DataError(f"the arrays are empty: got images {list(images_NHWC.shape)}. Give some.")
    arrays: Arrays
    if kind is not None:
        arrays = Kept(images_NHWC, kind[1])
        axis = "" if kind[0] in COLOURS else "last" if np.shape(pair[0])[-1] == kind[0] else "first"
        notes.append(kept_line(name, kind, axis))
        check = _finite(arrays)
    else:
        arrays = Converted(images_NHWC, EXACT_HALF if half else EXACT)
        check = _rounded(arrays)
    block = max(1, min(BLOCK, BLOCK_BYTES // images_NHWC[0].nbytes))
    if images_NHWC.dtype.kind == "f" and _scanned(len(arrays), block, check, progress):
        notes.append(
            f"the images of {name} are floats between the 256 levels of 8 bits: they were rounded "
            "(vivace.Data(..., pixels='float32') keeps them)"
        )
    found = named(labels, None, name, notes, multi_label=data.multi_label)
    return Found(
        labels=found.labels,
        order=in_order(found.labels, None, numbers=found.are_numbers),
        names=[f"{split}/{index:06d}" for index in range(len(labels))],
        arrays=arrays,
        is_grey=images_NHWC.shape[-1] == 1,
        kind=kind,
        notes=notes,
    )


def _scanned(count: int, block: int, check: Callable[[slice], bool], progress: Progress) -> bool:
    """Whether `check` is true of a block of images. Raises DataError, which names the first image, where it raises."""
    found = False
    for start in range(0, count, block):
        progress(start, count)
        try:
            found |= check(slice(start, start + block))
        except ImageError as error:
            last = min(start + block, count)
            _name_the_first(range(start, last), check)
            raise DataError(f"images {start} to {last - 1}: {error}") from None
    progress(count, count)
    return found


def _name_the_first(rows: range, check: Callable[[slice], bool]) -> None:
    """Raise DataError for the first of these images of which `check` raises."""
    for row in rows:
        try:
            check(slice(row, row + 1))
        except ImageError as error:
            raise DataError(f"image {row}: {error}") from None


def _rounded(arrays: Converted) -> Callable[[slice], bool]:
    return lambda rows: not arrays.levels(rows)[1]


def _finite(arrays: Arrays) -> Callable[[slice], bool]:
    def check(rows: slice) -> bool:
        for image in arrays[rows]:
            check_finite(image, "the image")
        return False

    return check


def _images(images: Any, pixels: str | None) -> tuple[np.ndarray, bool, Kind]:
    """(images_NHWC as a view, whether they are of half precision, how they are kept)."""
    array, half = _array(images, "images")
    if array.dtype == object:
        raise DataError(
            "the images have different shapes or are no numbers: got an array of objects. Give a torch Dataset of them."
        )
    if array.dtype.name not in ("uint8", "uint16", "bool") and array.dtype.kind != "f":
        raise DataError(
            f"the images are neither uint8, uint16 nor floats: got {array.dtype} {list(array.shape)}. {WANTED}; where "
            "whole numbers are from 0 to 255, images.astype(numpy.uint8); to 65535, numpy.uint16."
        )
    try:
        if is_tensor(images) and array.ndim == 4:
            images_NHWC = np.moveaxis(array, 1, -1) if _is_first(array.shape) else with_channels_last(array, 4)
        else:
            images_NHWC = with_channels_last(array[..., None] if array.ndim == 3 else array, 4)
        kind = raw_kind(array.dtype, images_NHWC.shape[-1], pixels)
    except ImageError as error:
        raise DataError(str(error)) from None
    if len(images_NHWC) and 0 in images_NHWC.shape:
        raise DataError(f"the images have no pixels: got {list(array.shape)}. {WANTED}.")
    if math.prod(images_NHWC.shape[1:3]) > MOST_PIXELS:
        # an array may be a view that repeats one value: what it stands for would not fit into any memory
        raise DataError(f"the images have over {MOST_PIXELS:,} pixels: got {list(array.shape)}. {WANTED}.")
    return images_NHWC, half, kind


def _is_first(shape: tuple[int, ...]) -> bool:
    """Whether the channels of a tensor are where torch has them: unless only the last axis can hold some."""
    return shape[1] not in COLOURS and shape[3] not in COLOURS and shape[1] < min(shape[2:])


def _labels(labels: Any, multi_label: bool | None) -> list[Any]:
    if isinstance(labels, list | tuple) and any(isinstance(label, VECTORS) or is_tensor(label) for label in labels):
        # lists may differ in length
        return [given_label(label, f"label {index}", multi_label) for index, label in enumerate(labels)]
    array, _ = _array(labels, "labels")
    if array.ndim == 2 and array.shape[1] > 1 and multi_label is not False:
        return [given_label(row, f"label {index}", multi_label) for index, row in enumerate(array)]
    if array.ndim == 2 and array.shape[1] == 1:
        # as Keras has them
        array = array[:, 0]
    if array.ndim != 1:
        hint = f": of one-hot rows, labels.argmax({array.ndim - 1})" if array.ndim == 2 else ""
        raise DataError(f"the labels are no list: got an array {list(array.shape)}. Give one for each image{hint}.")
    # Python's own numbers and text
    return [label_of(value, f"label {index}") for index, value in enumerate(array.tolist())]


def _array(values: Any, what: str) -> tuple[np.ndarray, bool]:
    """(the array, whether it was of half precision). Raises DataError for what is no array."""
    if is_tensor(values):
        half = str(values.dtype) in ("torch.float16", "torch.bfloat16")
        try:
            values = values.detach().cpu()
            return (values.float() if half else values).numpy(), half
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise DataError(
                f"the {what} can't be read: got a tensor of {values.dtype} ({type(error).__name__}). Give a dense one."
            ) from None
    is_listed = isinstance(values, list | tuple) and what == "labels"
    if not is_listed and not isinstance(values, np.ndarray) and not hasattr(type(values), "__array__"):
        raise DataError(
            f"the {what} are no array: got {'None' if values is None else f'a {type(values).__name__}'}. Give "
            '(images, labels) as arrays; of data sets for training and validation, {"train": …, "val": …}.'
        )
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"the {what} can't be made an array: {str(error)[:200]}. Give numpy arrays.") from None
    return array, array.dtype == np.float16
