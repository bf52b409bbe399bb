"""Pixels as they are: images of 16 bits or of floats, or of other channels than grey and RGB.

Nothing is converted to 8 bits or to colours, and no value is scaled: what the data were trained as is what is taken.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from vivace.data.decoding.square import RESAMPLING, kept_box, padded_size
from vivace.errors import ImageError

__all__ = ["WHITE", "arranged", "as_kept", "check_finite", "check_raw", "is_raw", "raw_square"]

# dtype of stored pixels → the value that is 1 on the scale of mean and std; floats are on a scale of their own
WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
# the margins of a padded image
MARGINS = {"uint8": 128, "uint16": 32768, "float32": 0}
FLOAT = "float32"


def is_raw(pixels: str, channels: int) -> bool:
    """Whether images of this dtype and number of channels are kept as they are, and are no grey or RGB of 8 bits."""
    return pixels != "uint8" or channels not in (1, 3)


def arranged(array: np.ndarray, channels: int) -> np.ndarray:
    """[..., H, W, C] of [..., H, W, C] or [..., C, H, W], or of [H, W] where C is 1; a view.

    An array that has `channels` on neither axis is returned unchanged; where both have, the channels are last.
    """
    if array.ndim == 2:
        return array[..., None]
    if array.ndim in (3, 4) and array.shape[-1] != channels and array.shape[-3] == channels:
        return np.moveaxis(array, -3, -1)
    return array


def check_raw(array_HWC: np.ndarray, pixels: str, channels: int, name: str = "the image") -> np.ndarray:
    """The array as C-contiguous `pixels` [H, W, channels]. Raises ImageError for another dtype, shape, NaN or Inf.

    Of floats any precision is taken, of integers the very type alone: values of another depth mean something else.
    """
    dtype = array_HWC.dtype
    same = dtype.kind == "f" if pixels == FLOAT else dtype.kind == "u" and dtype.itemsize == np.dtype(pixels).itemsize
    if not same or array_HWC.ndim != 3 or array_HWC.shape[-1] != channels:
        count = f"{channels} channel{'s' * (channels > 1)}"
        raise ImageError(
            f"{name} is not as the training images were: got {dtype} {list(array_HWC.shape)}, they are {pixels} with "
            f"{count}. Give [H, W, {channels}] or [{channels}, H, W] of {pixels}, on the same scale.",
            problem="not_an_image",
        )
    if 0 in array_HWC.shape:
        raise ImageError(f"the array is empty: {list(array_HWC.shape)}. Leave it out.", problem="empty")
    array_HWC = as_kept(array_HWC, pixels)
    check_finite(array_HWC, name)
    return array_HWC


def as_kept(array: np.ndarray, pixels: str) -> np.ndarray:
    """The array in this dtype, C-contiguous and in this machine's byte order; what float32 can't hold is infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.dtype(pixels))


def check_finite(array: np.ndarray, name: str) -> None:
    """Raise ImageError if a float is NaN or infinite, as where a map has no data, or too large for float32."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise ImageError(
            f"{name} has {count:,} values that are NaN or infinite, or beyond float32. Fill them, or leave it out.",
            problem="out_of_range",
        )


def raw_square(array_HWC: np.ndarray, side: int, fit: str, interpolation: str) -> np.ndarray:
    """[side, side, C] of the same dtype: cropped, squashed or padded, and resized channel by channel by Pillow.

    uint16 are resized as float32, which holds them exactly, rounded and clipped.
    """
    height, width, channels = array_HWC.shape
    if (height, width) == (side, side):
        return array_HWC
    size, box = (side, side), kept_box(width, height, fit)
    if fit == "pad":
        size, box = padded_size(width, height, side), (0, 0, width, height)
    square = np.full((side, side, channels), MARGINS[array_HWC.dtype.name], array_HWC.dtype)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    inside = square[top : top + size[1], left : left + size[0]]
    for channel in range(channels):
        inside[..., channel] = _resized(array_HWC[..., channel], size, box, interpolation)
    return square


def _resized(
    plane_HW: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int], interpolation: str
) -> np.ndarray:
    dtype = plane_HW.dtype
    plane = np.ascontiguousarray(plane_HW if dtype == np.uint8 else plane_HW.astype(np.float32))
    values = np.asarray(Image.fromarray(plane).resize(size, RESAMPLING[interpolation], box=box))
    # cubic filters overshoot
    return np.rint(values).clip(0, 65535).astype(np.uint16) if dtype == np.uint16 else values
