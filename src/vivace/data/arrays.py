"""Converts arrays and tensors to the same 8-bit picture that decoding a file of that image gives (no torch here).

numpy   uint8 [H, W] or [H, W, C]; C is 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha
        bool: black and white
        uint16: reduced to 8 bits by the rule for files (see `tones`)
        float in [0, 1]: times 255, rounded to nearest, as in torchvision and scikit-image. Other ranges are refused,
        because values from 0 to 255 and normalized values can't be distinguished
torch   the same types, [C, H, W], on any device
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from PIL import Image

from vivace.data.decoding.raw import arranged
from vivace.data.decoding.tones import combined, eight_bit
from vivace.errors import ImageError

__all__ = ["arranged", "array_of", "is_tensor", "picture_of"]

CHANNELS = (1, 2, 3, 4)
WANTED = "Give uint8 [H, W] or [H, W, C] with 1 to 4 channels"


def is_tensor(value: Any) -> bool:
    """Whether it is a torch.Tensor; does not import torch, since without it there can be none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def array_of(tensor: Any, channels: int | None = None) -> np.ndarray:
    """The array [H, W, C] of a tensor [C, H, W], or [N, H, W, C] of [N, C, H, W]; shares its memory if possible.

    channels: the number that is expected, None for those of pictures. Where it is 1, a tensor may be [H, W].
    Raises ImageError for another shape, or if the values can't be read (such as of a meta or sparse tensor).
    """
    if tensor.is_nested:
        # it has no shape
        raise _not_an_image(f"the tensor is nested: {tensor.dtype}. Give a list of its tensors: tensor.unbind().")
    tensor = tensor[None] if channels == 1 and tensor.ndim == 2 else tensor
    shape, known = tuple(tensor.shape), CHANNELS if channels is None else (channels,)
    if len(shape) not in (3, 4) or shape[-3] not in known:
        hint = ", as by tensor.movedim(-1, -3)" if len(shape) in (3, 4) and shape[-1] in known else ""
        raise _not_an_image(
            f"the tensor is not an image: {tensor.dtype} {list(shape)}. Give [C, H, W] or [N, C, H, W] with "
            f"{'1 to 4' if channels is None else channels} channels{hint}."
        )
    try:
        values = tensor.detach().cpu()
        # numpy has no bfloat16
        array: np.ndarray = (values.float() if values.is_floating_point() else values).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise _not_an_image(
            f"the tensor's values can't be read: {tensor.dtype} {list(shape)} on {tensor.device} "
            f"({type(error).__name__}). Give a dense tensor of uint8, or of floats from 0 to 1."
        ) from None
    return np.moveaxis(array, -3, -1)


def picture_of(array: np.ndarray) -> np.ndarray | Image.Image:
    """uint8 [H, W, 1 | 3], or an 8-bit Pillow image if there is alpha or there were 16 bits.

    Raises ImageError: not_an_image for another shape, dtype or range; empty for an array without pixels.
    """
    kind = f"{array.dtype} {list(array.shape)}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        hint = ", as by numpy.moveaxis(array, 0, -1)" if array.ndim == 3 and array.shape[0] in CHANNELS else ""
        raise _not_an_image(f"the array is not an image: {kind}. {WANTED}{hint}.")
    if 0 in array.shape:
        raise ImageError(f"the array is empty: {list(array.shape)}. Leave it out.", problem="empty")
    pixels_HWC = array[..., None] if array.ndim == 2 else array
    if array.dtype.kind == "f":
        pixels_HWC = _of_floats(pixels_HWC, kind)
    elif array.dtype == bool:
        pixels_HWC = pixels_HWC.astype(np.uint8) * 255
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _of_sixteen_bits(pixels_HWC.astype(np.uint16))
    elif array.dtype != np.uint8:
        raise _not_an_image(f"the array is not an image: {kind}. {WANTED}, or floats from 0 to 1.")
    pixels_HWC = np.ascontiguousarray(pixels_HWC)
    return pixels_HWC if pixels_HWC.shape[2] in (1, 3) else Image.fromarray(pixels_HWC)


def _of_floats(values_HWC: np.ndarray, kind: str) -> np.ndarray:
    low, high = float(values_HWC.min()), float(values_HWC.max())
    # written so that NaN is refused too
    if not (low >= 0 and high <= 1):
        raise _not_an_image(
            f"the array is not an image: {kind} from {low:.4g} to {high:.4g}. Give floats from 0 to 1, before "
            "normalization, or uint8 from 0 to 255."
        )
    return np.rint(values_HWC.astype(np.float32) * np.float32(255)).astype(np.uint8)


def _of_sixteen_bits(values_HWC: np.ndarray) -> Image.Image:
    """The 8-bit image of 16-bit values, by the rule for files."""
    channels = values_HWC.shape[2]
    if channels == 1:
        return eight_bit(Image.fromarray(np.ascontiguousarray(values_HWC[..., 0])))[0]
    high, low = ((part.astype(np.uint8)) for part in (values_HWC >> 8, values_HWC & 255))
    upper = Image.fromarray(high)
    # as for files: the low bytes of colours matter only if the high bytes have few tones
    return upper if channels > 2 and high[..., :3].max() >= 16 else combined(upper, Image.fromarray(low))[0]


def _not_an_image(message: str) -> ImageError:
    return ImageError(message, problem="not_an_image")
