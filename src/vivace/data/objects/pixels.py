"""From an image as a program has it, of Pillow, NumPy or torch, to the contents that the cache is made from.

An image of Pillow is turned upright by its EXIF block, as a file is. Floats from 0 to 1 are multiplied by 255, which
gives the very 8 bits that torchvision's ToTensor was given. More than 8 bits and more than three channels are refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vivace.data.arrays import array_of, is_tensor
from vivace.data.decoding.decode import read_bytes
from vivace.data.decoding.picture import orientation_of, turned
from vivace.data.decoding.square import DETOURS
from vivace.errors import ImageError

__all__ = ["Content", "content_of", "exact_levels", "with_channels_last"]

COLOURS = (1, 3)
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
# how far 255 times a float may be from a whole number: float32 is exact to 2e-5, half precision to 0.13
EXACT, EXACT_HALF = 1e-3, 0.14
# an axis of at most so many may be meant to hold channels
MANY_CHANNELS = 32


class Content(NamedTuple):
    """What an image consists of."""

    data: bytes | np.ndarray
    """The bytes of an image file, or uint8 [H, W, C]: C is 1 grey, 3 RGB, 4 RGB and alpha."""
    exact: bool = True
    """False: floats that are no multiples of 1/255 were rounded to 8 bits."""


def content_of(image: Any) -> Content:
    """The contents of one image: of Pillow, an array, a tensor, or an image file's path or bytes.

    An array is uint8, bool or floats from 0 to 1, [H, W], [H, W, C] or, where that is unambiguous, [C, H, W], with 1 or
    3 channels; a tensor [C, H, W] or [H, W]. Raises ImageError, with how to fix it, for anything else; OSError for an
    image of Pillow that can't be decoded.
    """
    if isinstance(image, Image.Image):
        return Content(_of_pillow(image))
    if isinstance(image, bytes):
        return Content(image)
    if isinstance(image, str | os.PathLike):
        return Content(read_bytes(os.fspath(image)))
    if isinstance(image, Mapping) and {"bytes", "path"} <= image.keys():
        # an image of Hugging Face's datasets that is not decoded
        return content_of(image["path"] if image["bytes"] is None else image["bytes"])
    if is_tensor(image):
        half = str(image.dtype) in ("torch.float16", "torch.bfloat16")
        array = image[None] if image.ndim == 2 and not image.is_nested else image
        return _of_array(array_of(array) if _fits(array) else _refuse_tensor(array), EXACT_HALF if half else EXACT)
    if isinstance(image, np.ndarray):
        return _of_array(image, EXACT_HALF if image.dtype == np.float16 else EXACT)
    raise ImageError(
        f"not an image: got {'None' if image is None else shown_type(image)}. Give an image of Pillow, an array or a "
        "tensor.",
        problem="not_an_image",
    )


def shown_type(value: Any) -> str:
    """Such as "a list"."""
    return f"a {type(value).__name__}"


def _of_pillow(image: Image.Image) -> np.ndarray:
    # before load() a lazily opened image has neither pixels nor an EXIF block that follows them in a PNG
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        raise _refused(f"the image has more than 8 bits: got mode {image.mode}. Give its file, or convert it to 8 bits")
    if 0 in image.size:
        raise ImageError(f"the image is empty: {list(image.size)}. Leave it out.", problem="empty")
    upright = turned(image, orientation_of(image))
    if upright.mode in WITH_ALPHA or "transparency" in upright.info:
        upright = upright.convert("LA") if upright.mode == "La" else upright
        return np.asarray(upright.convert("RGBA"))
    if upright.mode in ("1", "L"):
        return np.asarray(upright.convert("L"))[..., None]
    upright = upright.convert(DETOURS[upright.mode]) if upright.mode in DETOURS else upright
    return np.asarray(upright.convert("RGB"))


def _fits(tensor: Any) -> bool:
    return tensor.is_nested or (tensor.ndim == 3 and tensor.shape[0] in COLOURS)


def _refuse_tensor(tensor: Any) -> np.ndarray:
    shape = list(tensor.shape)
    raise _refused(f"the tensor is not an image: {tensor.dtype} {shape}. {_channels_hint(shape, 'Give [C, H, W]', 3)}")


def _of_array(array: np.ndarray, tolerance: float) -> Content:
    if 0 in array.shape:
        raise ImageError(f"the array is empty: {list(array.shape)}. Leave it out.", problem="empty")
    if array.ndim == 2:
        array = array[..., None]
    pixels_HWC = with_channels_last(array, 3)
    if pixels_HWC.dtype == np.uint8:
        return Content(np.ascontiguousarray(pixels_HWC))
    if pixels_HWC.dtype == bool:
        return Content(np.ascontiguousarray(pixels_HWC).astype(np.uint8) * 255)
    if pixels_HWC.dtype.kind == "f":
        return Content(*exact_levels(pixels_HWC, tolerance))
    raise _refused(f"the image is neither uint8 nor floats: got {array.dtype}. {_dtype_hint(array.dtype)}")


def _dtype_hint(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "iu" and dtype != np.uint16:
        return "If its values are 0 to 255, give image.astype(numpy.uint8)"
    return "Give 8 bits: uint8 from 0 to 255, or floats from 0 to 1"


def with_channels_last(array: np.ndarray, ndim: int) -> np.ndarray:
    """[H, W, C] of [H, W, C] or [C, H, W] with 1 or 3 channels, or of ndim 4 with N before them; a view.

    Where both fit, the channels are last. Raises ImageError.
    """
    shape, wanted = list(array.shape), "Give [H, W] or [H, W, C]" if ndim == 3 else "Give [N, H, W] or [N, H, W, C]"
    if array.ndim == ndim and shape[-1] in COLOURS:
        return array
    if array.ndim == ndim and shape[-3] in COLOURS:
        return np.moveaxis(array, -3, -1)
    raise _refused(f"not of an image's shape: got {array.dtype} {shape}. {_channels_hint(shape, wanted, ndim)}")


def _channels_hint(shape: list[int], wanted: str, ndim: int) -> str:
    if len(shape) == ndim and min(shape[-1], shape[-3]) <= MANY_CHANNELS:
        return f"{wanted} with 1 or 3 channels: others, alpha among them, are not supported"
    if len(shape) == ndim - 2 and shape[-1] > 16 and (side := math.isqrt(shape[-1])) ** 2 == shape[-1]:
        return f"{wanted}: if each row is an image, reshape them to {side} × {side}"
    return f"{wanted} with 1 or 3 channels"


def exact_levels(values: np.ndarray, tolerance: float = EXACT) -> tuple[np.ndarray, bool]:
    """(uint8 of floats from 0 to 1, whether they were multiples of 1/255). Raises ImageError for other values."""
    low, high = float(values.min()), float(values.max())
    # written so that NaN is refused too
    if not (low >= 0 and high <= 1):
        got = f"got {values.dtype} from {low:.4g} to {high:.4g}"
        if low >= 0 and 1 < high <= 255:
            raise ImageError(
                f"the floats are not from 0 to 1: {got}. If they are from 0 to 255, give image.astype(numpy.uint8).",
                problem="out_of_range",
            )
        raise ImageError(
            f"the image looks normalized: {got}. Give it without Normalize, from 0 to 1 or as uint8: vivace normalizes "
            "by itself.",
            problem="out_of_range",
        )
    scaled = np.asarray(values, dtype=np.float32) * np.float32(255)
    levels = np.rint(scaled)
    exact = bool(np.abs(scaled - levels).max(initial=0) <= tolerance)
    return np.ascontiguousarray(levels.astype(np.uint8)), exact


def _refused(message: str) -> ImageError:
    return ImageError(f"{message}.", problem="not_an_image")
