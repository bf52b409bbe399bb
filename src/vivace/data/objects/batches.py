"""Images in one array with their labels in another: NumPy's, torch's, or what NumPy makes an array of."""

from __future__ import annotations

from typing import Any

import numpy as np

from vivace.data.arrays import is_tensor
from vivace.data.objects.found import Found, in_order
from vivace.data.objects.items import Progress
from vivace.data.objects.kinds import name_of
from vivace.data.objects.labels import label_of, names_of
from vivace.data.objects.pixels import EXACT, EXACT_HALF, exact_levels, with_channels_last
from vivace.errors import DataError, ImageError

__all__ = ["open_arrays"]

# images that are converted at once
BLOCK = 256
WANTED = "Give uint8 [N, H, W, C] or [N, H, W], or floats from 0 to 1"


class Converted:
    """uint8 [N, H, W, C] of an array of another type or order of axes, converted when it is indexed."""

    def __init__(self, array_NHWC: np.ndarray, tolerance: float) -> None:
        self._array_NHWC, self._tolerance = array_NHWC, tolerance
        self.shape: tuple[int, ...] = array_NHWC.shape

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


def open_arrays(pair: tuple[Any, Any], split: str, progress: Progress) -> Found:
    """What two arrays hold: images [N, H, W, C], [N, H, W] or [N, C, H, W], and a label for each.

    Floats from 0 to 1 are multiplied by 255; which of them were rounded is noted. Raises DataError.
    """
    name, notes = name_of(pair), list[str]()
    images_NHWC, half = _images(pair[0])
    labels = _labels(pair[1])
    if len(labels) != len(images_NHWC):
        raise DataError(
            f"images and labels differ in number: got {len(images_NHWC):,} and {len(labels):,}. Give a label for each "
            "image."
        )
    if not len(labels):
        raise DataError(f"the arrays are empty: got images {list(images_NHWC.shape)}. Give some.")
    arrays = Converted(images_NHWC, EXACT_HALF if half else EXACT)
    num_inexact = 0
    if images_NHWC.dtype.kind == "f":
        for start in range(0, len(arrays), BLOCK):
            progress(start, len(arrays))
            try:
                num_inexact += not arrays.levels(slice(start, start + BLOCK))[1]
            except ImageError as error:
                raise DataError(f"images {start} to {min(start + BLOCK, len(arrays)) - 1}: {error}") from None
        progress(len(arrays), len(arrays))
    if num_inexact:
        notes.append(f"the images of {name} are floats between the 256 levels of 8 bits: they were rounded")
    names = names_of(labels, None, name)
    return Found(
        labels=names,
        order=in_order(names, None, numbers=isinstance(labels[0], int)),
        names=[f"{split}/{index:06d}" for index in range(len(labels))],
        arrays=arrays,
        is_grey=images_NHWC.shape[-1] == 1,
        notes=notes,
    )


def _images(images: Any) -> tuple[np.ndarray, bool]:
    """(images_NHWC as a view, whether they are of half precision)."""
    array, half = _array(images, "images")
    if array.dtype == object:
        raise DataError(
            "the images have different shapes or are no numbers: got an array of objects. Give a torch Dataset of them."
        )
    if array.dtype != np.uint8 and array.dtype != bool and array.dtype.kind != "f":
        raise DataError(
            f"the images are neither uint8 nor floats: got {array.dtype} {list(array.shape)}. {WANTED}; where whole "
            "numbers are from 0 to 255, images.astype(numpy.uint8)."
        )
    try:
        images_NHWC = with_channels_last(array[..., None] if array.ndim == 3 else array, 4)
    except ImageError as error:
        raise DataError(str(error)) from None
    if len(images_NHWC) and 0 in images_NHWC.shape:
        raise DataError(f"the images have no pixels: got {list(array.shape)}. {WANTED}.")
    return images_NHWC, half


def _labels(labels: Any) -> list[Any]:
    array, _ = _array(labels, "labels")
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
