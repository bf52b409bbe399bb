"""From an image as a program has it, of Pillow, NumPy or torch, to the contents that the cache is made from.

An image of Pillow is turned upright by its EXIF block, as a file is. Floats from 0 to 1 are multiplied by 255, which
gives the very 8 bits that torchvision's ToTensor was given. Arrays of other numbers of channels, uint16, and floats of
which the user says so are kept as they are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vivace.data.arrays import array_of, is_tensor
from vivace.data.decoding.decode import MAX_PIXELS, read_bytes
from vivace.data.decoding.picture import orientation_of, turned
from vivace.data.decoding.raw import as_kept, check_finite, is_raw
from vivace.data.decoding.raw_files import raw_decoding
from vivace.data.decoding.square import DETOURS
from vivace.errors import ImageError

__all__ = [
    "Content",
    "Kind",
    "check_kind",
    "content_of",
    "exact_levels",
    "raw_kind",
    "shown_kind",
    "with_channels_last",
]

COLOURS = (1, 3)
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
# how far 255 times a float may be from a whole number: float32 is exact to 2e-5, half precision to 0.13
EXACT, EXACT_HALF = 1e-3, 0.14
# an axis of at most so many may be meant to hold channels
MANY_CHANNELS = 256
# (channels, dtype) of images that are kept as they are; None of pictures, grey or RGB of 8 bits
Kind = tuple[int, str] | None


class Content(NamedTuple):
    """What an image consists of."""

    data: bytes | np.ndarray
    """The bytes of an image file, or uint8 [H, W, C]: C is 1 grey, 3 RGB, 4 RGB and alpha; or what `kind` says."""
    exact: bool = True
    """False: floats that are no multiples of 1/255 were rounded to 8 bits."""
    kind: Kind = None
    """Of an image that is kept as it is."""
    note: str = ""
    """Which axis of an array was taken for its channels, where there are other than 1 or 3."""


def content_of(image: Any, pixels: str | None = None) -> Content:
    """The contents of one image: of Pillow, an array, a tensor, or an image file's path or bytes.

    An array is uint8, bool, uint16 or floats, [H, W], [H, W, C] or, where that is unambiguous, [C, H, W]; a tensor
    [C, H, W] or [H, W]. Floats with 1 or 3 channels are from 0 to 1. pixels: as of `Data`; with float32, floats are on
    any scale and kept. Raises ImageError, with how to fix it, for anything else; OSError for an image of Pillow that
    can't be decoded.
    """
    if isinstance(image, Image.Image):
        return _of_pillow(image, pixels)
    if isinstance(image, bytes):
        return Content(image, kind=_kind_of_file(image, pixels))
    if isinstance(image, str | os.PathLike):
        data = read_bytes(os.fspath(image))
        return Content(data, kind=_kind_of_file(data, pixels))
    if isinstance(image, Mapping) and {"bytes", "path"} <= image.keys():
        # an image of Hugging Face's datasets that is not decoded
        return content_of(image["path"] if image["bytes"] is None else image["bytes"], pixels)
    if is_tensor(image):
        half = str(image.dtype) in ("torch.float16", "torch.bfloat16")
        array = image[None] if not image.is_nested and image.ndim == 2 else image
        if not _fits(array):
            _refuse_tensor(array)
        count = None if array.is_nested or array.shape[0] in COLOURS else int(array.shape[0])
        return _of_array(array_of(array, count), EXACT_HALF if half else EXACT, pixels, "first" if count else "")
    if isinstance(image, np.ndarray):
        return _of_array(image, EXACT_HALF if image.dtype == np.float16 else EXACT, pixels)
    raise ImageError(
        f"not an image: got {'None' if image is None else shown_type(image)}. Give an image of Pillow, an array or a "
        "tensor.",
        problem="not_an_image",
    )


def shown_type(value: Any) -> str:
    """Such as "a list"."""
    return f"a {type(value).__name__}"


def raw_kind(dtype: np.dtype[Any], channels: int, pixels: str | None) -> Kind:
    """How images of this dtype are kept as they are; None for those that become pictures of 8 bits.

    Raises ImageError for another dtype than `pixels` asks for.
    """
    name = "float32" if dtype.kind == "f" else dtype.name
    if pixels is not None and name != pixels and not (pixels == "uint8" and channels in COLOURS and dtype.kind in "fb"):
        raise _refused(f"the image is not {pixels}, as `pixels` asks: got {dtype}. {_dtype_hint(dtype)}")
    if name == "float32" and pixels is None and channels in COLOURS:
        return None
    return (channels, name) if name in ("uint16", "float32", "uint8") and is_raw(name, channels) else None


def shown_kind(kind: Kind) -> str:
    """Such as "5 channels of uint16"."""
    if kind is None:
        return "grey or RGB of 8 bits"
    return f"{kind[0]} channel{'s' * (kind[0] > 1)} of {kind[1]}"


def check_kind(kind: Kind, wanted: Kind, where: str) -> None:
    """Raise ImageError for an image of another kind than the others."""
    if kind != wanted:
        raise _refused(f"{where} has {shown_kind(kind)}, the others {shown_kind(wanted)}. Give images of one kind")


def _kind_of_file(data: bytes, pixels: str | None) -> Kind:
    if pixels is None or pixels == "uint8":
        return None
    with raw_decoding(data, max_pixels=MAX_PIXELS, side=0) as (_, picture):
        array = np.asarray(picture.pixels)
        return raw_kind(array.dtype, array.shape[2], pixels)


def _of_pillow(image: Image.Image, pixels: str | None) -> Content:
    if image.mode.startswith("I;16") or (image.mode == "F" and pixels == "float32"):
        image.load()
        upright = np.asarray(turned(image, orientation_of(image)))
        return _of_array(upright.astype(np.uint16) if upright.dtype.kind == "u" else upright, EXACT, pixels)
    if pixels not in (None, "uint8"):
        raise _refused(f"the image is not {pixels}, as `pixels` asks: got mode {image.mode}. Leave `pixels` out")
    return Content(_picture(image))


def _picture(image: Image.Image) -> np.ndarray:
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
    if tensor.is_nested or tensor.ndim != 3:
        return bool(tensor.is_nested)
    count, height, width = tensor.shape
    # fewer than the sides: else they may be last, as of an image that was not permuted
    return count in COLOURS or (width not in COLOURS and 0 < count < min(height, width, MANY_CHANNELS + 1))


def _refuse_tensor(tensor: Any) -> None:
    shape = list(tensor.shape)
    raise _refused(f"the tensor is not an image: {tensor.dtype} {shape}. {_channels_hint(shape, 'Give [C, H, W]', 3)}")


def _of_array(array: np.ndarray, tolerance: float, pixels: str | None, axis: str = "") -> Content:
    if 0 in array.shape:
        raise ImageError(f"the array is empty: {list(array.shape)}. Leave it out.", problem="empty")
    if array.ndim == 2:
        array = array[..., None]
    pixels_HWC = array if axis else with_channels_last(array, 3)
    kind = raw_kind(array.dtype, pixels_HWC.shape[2], pixels)
    if kind is not None:
        kept = as_kept(pixels_HWC, kind[1])
        check_finite(kept, "the image")
        axis = axis or ("last" if array.shape[-1] == kind[0] else "first")
        return Content(kept, kind=kind, note=axis if kind[0] not in COLOURS else "")
    if pixels_HWC.dtype == np.uint8:
        return Content(np.ascontiguousarray(pixels_HWC))
    if pixels_HWC.dtype == bool:
        return Content(np.ascontiguousarray(pixels_HWC).astype(np.uint8) * 255)
    if pixels_HWC.dtype.kind == "f":
        return Content(*exact_levels(pixels_HWC, tolerance))
    raise _refused(f"the image is neither uint8, uint16 nor floats: got {array.dtype}. {_dtype_hint(array.dtype)}")


def _dtype_hint(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "iu" and dtype not in (np.uint8, np.uint16):
        return "If its values are 0 to 255, give image.astype(numpy.uint8); if they are 0 to 65535, numpy.uint16"
    return "Leave `pixels` out, or give what it says"


def with_channels_last(array: np.ndarray, ndim: int) -> np.ndarray:
    """[H, W, C] of [H, W, C] or [C, H, W], or of ndim 4 with N before them; a view.

    1 or 3 on the last axis, else on the first, are the channels; else the shorter of the two, if it is shorter than
    the sides. Raises ImageError where none is.
    """
    shape, wanted = list(array.shape), "Give [H, W] or [H, W, C]" if ndim == 3 else "Give [N, H, W] or [N, H, W, C]"
    if array.ndim == ndim:
        last, first, middle = shape[-1], shape[-3], shape[-2]
        if last in COLOURS or (first not in COLOURS and last < min(first, middle, MANY_CHANNELS + 1)):
            return array
        if first in COLOURS or first < min(middle, last, MANY_CHANNELS + 1):
            return np.moveaxis(array, -3, -1)
    raise _refused(f"not of an image's shape: got {array.dtype} {shape}. {_channels_hint(shape, wanted, ndim)}")


def _channels_hint(shape: list[int], wanted: str, ndim: int) -> str:
    if len(shape) == ndim and min(shape[-1], shape[-3]) <= MANY_CHANNELS:
        return f"{wanted} with fewer channels than the sides are long: which axis they are on can't be told"
    if len(shape) == ndim - 2 and shape[-1] > 16 and (side := math.isqrt(shape[-1])) ** 2 == shape[-1]:
        return f"{wanted}: if each row is an image, reshape them to {side} × {side}"
    return f"{wanted}, at most {MANY_CHANNELS} channels"


def exact_levels(values: np.ndarray, tolerance: float = EXACT) -> tuple[np.ndarray, bool]:
    """(uint8 of floats from 0 to 1, whether they were multiples of 1/255). Raises ImageError for other values."""
    low, high = float(values.min()), float(values.max())
    # written so that NaN is refused too
    if not (low >= 0 and high <= 1):
        got = f"got {values.dtype} from {low:.4g} to {high:.4g}"
        check_finite(values, "the image")
        if low >= 0 and 1 < high <= 255:
            raise ImageError(
                f"the floats are not from 0 to 1: {got}. If they are from 0 to 255, give image.astype(numpy.uint8); to "
                "keep them on this scale, vivace.Data(..., pixels='float32').",
                problem="out_of_range",
            )
        raise ImageError(
            f"the image looks normalized: {got}. Give it without Normalize, from 0 to 1 or as uint8: vivace normalizes "
            "by itself. To keep measurements on their own scale, vivace.Data(..., pixels='float32').",
            problem="out_of_range",
        )
    scaled = np.asarray(values, dtype=np.float32) * np.float32(255)
    levels = np.rint(scaled)
    exact = bool(np.abs(scaled - levels).max(initial=0) <= tolerance)
    return np.ascontiguousarray(levels.astype(np.uint8)), exact


def _refused(message: str) -> ImageError:
    return ImageError(f"{message}.", problem="not_an_image")
