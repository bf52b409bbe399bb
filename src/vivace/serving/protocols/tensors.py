"""Tensors of Open Inference Protocol v2: from what a request holds to arrays and files, each checked against its shape.

Source: the protocol, https://github.com/kserve/open-inference-protocol, and Triton's extension for binary tensors.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vivace.data.arrays import picture_of
from vivace.data.preprocess import Preprocess
from vivace.errors import ImageError
from vivace.runtimes.table import INPUT
from vivace.serving.protocols.classifying import from_base64
from vivace.serving.web.refusals import Refusal

__all__ = ["DATATYPES", "as_images", "as_list", "encoded_texts", "whole"]

# datatype of the protocol → numpy's; BYTES apart
DATATYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"), "FP32": np.dtype("<f4")}
MAX_DIMENSIONS = 8


def whole(value: Any, what: str, *, most: int = 1 << 40) -> int:
    """A whole number from 0 in JSON. Raises Refusal (400) for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise _refused(f"{what} is no whole number from 0: got {str(value)[:40]!r}. Give one")
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """A list in JSON. Raises Refusal (400) for anything else."""
    if not isinstance(value, list):
        raise _refused(f"{what} is no list: got {type(value).__name__}. Give one")
    return value


def as_images(
    tensor: Mapping[str, Any], binary: bytes | None, preprocess: Preprocess, *, max_images: int
) -> Sequence[bytes | np.ndarray]:
    """The images of an input: files of BYTES, else pixels [size, size, C] as the network sees them.

    tensor: an element of `inputs`. binary: its part of the body where that has tensors, else None: `data` has it.
    Raises Refusal (400) for one whose shape, datatype and data disagree, or that is none of these.
    """
    shape = [whole(value, "a dimension of shape") for value in as_list(tensor.get("shape"), "shape")]
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise _refused(f"shape has {len(shape)} dimensions. Give [N] for files, or [N, height, width, channels]")
    if not 1 <= shape[0] <= max_images:
        raise Refusal(
            413 if shape[0] else 400,
            "too_many" if shape[0] else "tensor",
            f"the input has {shape[0]} images, 1 to {max_images} are taken in a request. Send several requests.",
        )
    datatype = tensor.get("datatype")
    if datatype == "BYTES":
        return _files(tensor, binary, shape)
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise _refused(f"the datatype is not taken: got {str(datatype)[:40]!r}. Give BYTES, {', '.join(DATATYPES)}")
    wanted = [shape[0], preprocess.size, preprocess.size, preprocess.channels]
    if shape != wanted:
        raise _refused(
            f"the shape is {shape}, {wanted} is what the network sees. Resize the images, or send their files as BYTES"
        )
    dtype = DATATYPES[datatype]
    array = _of_binary(binary, shape, dtype) if binary is not None else _of_json(tensor.get("data"), shape, dtype)
    return list(_pixels(array, datatype, preprocess))


def encoded_texts(values: Sequence[str]) -> bytes:
    """Texts as elements of a binary tensor of BYTES: each with its length before it, 4 bytes, little-endian."""
    return b"".join(struct.pack("<I", len(data)) + data for data in (value.encode() for value in values))


def _files(tensor: Mapping[str, Any], binary: bytes | None, shape: list[int]) -> list[bytes]:
    count = math.prod(shape)
    if count != shape[0]:
        raise _refused(f"the shape of BYTES is {shape}. Give [N], a file for each image")
    if binary is None:
        data = as_list(tensor.get("data"), "data")
        while len(data) == 1 and isinstance(data[0], list):
            data = data[0]
        data = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]
        if len(data) != count:
            raise _refused(f"data has {len(data)} elements, its shape {shape} says {count}. Make them agree")
        return [from_base64(item, f"{INPUT}[{index}]") for index, item in enumerate(data)]
    files: list[bytes] = []
    place = 0
    while place < len(binary) and len(files) <= count:
        end = place + 4
        if end <= len(binary):
            end += int.from_bytes(binary[place : place + 4], "little")
        if place + 4 > len(binary) or end > len(binary):
            raise _refused("an element of BYTES is longer than the tensor. Write its length before it in 4 bytes")
        files.append(binary[place + 4 : end])
        place = end
    if len(files) != count or place != len(binary):
        raise _refused(f"the tensor has {len(files)} elements or more, its shape {shape} says {count}. Make them agree")
    return files


def _of_binary(binary: bytes, shape: list[int], dtype: np.dtype[Any]) -> np.ndarray:
    expected = math.prod(shape) * dtype.itemsize
    if len(binary) != expected:
        raise _refused(f"the tensor has {len(binary):,} bytes, its shape {shape} says {expected:,}. Make them agree")
    return np.frombuffer(binary, dtype).reshape(shape)


def _of_json(data: Any, shape: list[int], dtype: np.dtype[Any]) -> np.ndarray:
    try:
        found = np.asarray(as_list(data, "data"))
    except (ValueError, OverflowError):
        raise _refused("data is nested unevenly. Give a flat list, or one nested as the shape says") from None
    kinds = "iuf" if dtype.kind == "f" else "iu"
    if found.dtype.kind not in kinds or found.size != math.prod(shape):
        raise _refused(
            f"data has {found.size:,} elements that numpy reads as {found.dtype}, the shape {shape} says "
            f"{math.prod(shape):,} of {dtype}. Make them agree"
        )
    if dtype.kind == "u" and (found.min() < 0 or found.max() > np.iinfo(dtype).max):
        raise _refused(f"data runs from {found.min()} to {found.max()}, beyond {dtype}. Give what fits")
    with np.errstate(over="ignore"):
        return found.astype(dtype).reshape(shape)


def _pixels(array_NHWC: np.ndarray, datatype: str, preprocess: Preprocess) -> np.ndarray:
    """The pixels of the bundle's dtype. Floats for a bundle of 8-bit images run from 0 to 1, as in Python."""
    if datatype == "FP32" and not np.isfinite(array_NHWC).all():
        # NaN in one image would spoil the batch that others are in
        raise _refused("the pixels are not all finite. Leave NaN and infinities out")
    if preprocess.dtype == "float32":
        if datatype == "UINT8" and preprocess.pixels != "uint8":
            raise _refused(f"the pixels are UINT8, those of this bundle are {preprocess.pixels}. Give UINT16 or FP32")
        return array_NHWC.astype(np.float32)
    if datatype == "UINT8":
        return array_NHWC
    if datatype == "FP32":
        try:
            return np.stack([np.asarray(picture_of(image)) for image in array_NHWC]).reshape(array_NHWC.shape)
        except ImageError as error:
            raise _refused(str(error).rstrip(".")) from None
    raise _refused(f"the pixels are {datatype}, those of this bundle are 8-bit. Give UINT8, or FP32 from 0 to 1")


def _refused(message: str) -> Refusal:
    return Refusal(400, "tensor", f"{message}.")
