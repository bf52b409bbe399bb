"""Files whose pixels are kept as they are: TIFF of any number of channels, PNG, and NumPy's .npy."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vivace.data.decoding.decode import PillowGuard, decode_bytes, image_errors, reading
from vivace.data.decoding.formats import HEAD_BYTES, NPY, sniff
from vivace.data.decoding.headers import Unfit
from vivace.data.decoding.picture import OTHER_BYTE, Limits, Picture, orientation_of, raw_mode, read_as
from vivace.data.decoding.raw_tiff import read_raw_tiff

__all__ = ["raw_decoding"]

# NumPy's own limit for a header that is not trusted
MAX_HEADER_BYTES = 10_000


@contextlib.contextmanager
def raw_decoding(source: Path | str | bytes, *, max_pixels: int, side: int) -> Iterator[tuple[bytes, Picture]]:
    """A context with (bytes of the file, its pixels as they are, [H, W, C] uint8, uint16 or float32).

    side: to which it is resized; it counts for memory. Raises ImageError as `decode.decoding` does.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    held = contextlib.nullcontext(source) if isinstance(source, bytes) else reading(source)
    with held as data, PillowGuard(), _decoded(data, name, Limits(max_pixels, side)) as picture:
        yield data, picture


@contextlib.contextmanager
def _decoded(data: bytes, name: str, limits: Limits) -> Iterator[Picture]:
    with contextlib.ExitStack() as stack:
        with image_errors(name):
            kind = "NPY" if data.startswith(NPY) else sniff(data[:HEAD_BYTES])
            if kind == "NPY":
                array = _of_npy(data)
            elif kind == "TIFF":
                array, orientation = read_raw_tiff(data, limits, stack)
                array = _upright(array, orientation)
            elif kind == "PNG":
                array = _of_png(data, limits, stack)
            else:
                # formats of 8 bits, or none at all
                array = np.asarray(decode_bytes(data, name, max_pixels=limits.max_pixels))
            array = array[..., None] if array.ndim == 2 else array
        yield Picture(array, kind or "")


def _of_npy(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read(file, max_header_size=MAX_HEADER_BYTES)
    if dtype.hasobject or len(shape) not in (2, 3) or len(data) - file.tell() != np.prod(shape) * dtype.itemsize:
        raise Unfit(f"NAME holds no image: {dtype} {list(shape)}. Save an array [H, W] or [H, W, C].", "not_an_image")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def _of_png(data: bytes, limits: Limits, stack: contextlib.ExitStack) -> np.ndarray:
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    limits.check(image.size)
    limits.check_deep(raw_mode(image), image.size)
    stack.enter_context(limits.grant(20 * image.width * image.height, image.size))
    raw, low = raw_mode(image), None
    if raw in OTHER_BYTE:
        lower = Image.open(io.BytesIO(data), formats=["PNG"])
        read_as(lower, OTHER_BYTE[raw])
        low = np.asarray(lower)
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "I;16") or raw.startswith("LA;16"):
        raise Unfit(f"the pixels can't be kept as they are: NAME has {image.mode}. Save it as TIFF.", "not_convertible")
    array = np.asarray(image)
    array = array if low is None else array.astype(np.uint16) << 8 | low
    return _upright(array, orientation_of(image))


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """The picture turned upright; orientation: 1 to 8, as in EXIF."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array
