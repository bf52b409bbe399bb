"""An image file → the pixels that the network sees, as training made them.

It is turned upright by its EXIF tag, converted to grey or RGB, cut to its central square (or squashed into one) and
resized; the network sees the middle of that. What could run code or fill the memory is refused.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

try:
    # what training decodes plain JPEGs with: the pixels of Pillow, in less time
    import simplejpeg
except ImportError:
    simplejpeg = None

__all__ = ["ImageError", "load_pixels"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS, MAX_BYTES, MIN_SIDE, MAX_ASPECT = 100_000_000, 1 << 30, 4, 50
RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """One image can't be used: the cause, the value received, the mend; `problem` names the fault: "truncated", say."""

    def __init__(self, message: str, problem: str) -> None:
        super().__init__(message)
        self.problem = problem


def load_pixels(source: str | os.PathLike[str] | bytes, preprocess: Mapping[str, Any]) -> np.ndarray:
    """What the network sees of an image file (a path, or its bytes): uint8 [size, size, channels].

    preprocess: that of model.json. Raises ImageError.
    """
    size, side, channels = (preprocess[key] for key in ("size", "store_size", "channels"))
    name = "the image" if isinstance(source, bytes) else os.fspath(source)
    data = source if isinstance(source, bytes) else read_bytes(name)
    with _PillowGuard():
        decoded = decode(data, name, side)
        try:
            image = _converted(_upright(decoded), "L" if channels == 1 else "RGB")
        except ValueError as error:
            raise ImageError(
                f"the colours can't be converted: {name!r} is {decoded.mode} ({error}). Save it as RGB.",
                "not_convertible",
            ) from None
        if image.size != (side, side):
            # cut and resized in one go: no second rounding
            box = _box(*image.size, preprocess["fit"])
            image = image.resize((side, side), RESAMPLING[preprocess["interpolation"]], box=box)
    margin = (side - size) // 2
    return np.asarray(image).reshape(side, side, channels)[margin : margin + size, margin : margin + size]


def _box(width: int, height: int, fit: str) -> tuple[int, int, int, int]:
    """What is kept of an image: left, top, right, bottom."""
    if fit == "squash":
        return 0, 0, width, height
    square = min(width, height)
    left, top = (width - square) // 2, (height - square) // 2
    return left, top, left + square, top + square


class _PillowGuard:
    """Holds Pillow to one behaviour while any thread decodes: its settings are globals that a program may change."""

    _lock = threading.Lock()
    _depth = 0
    _saved: tuple[bool, warnings.catch_warnings] | None = None

    def __enter__(self) -> None:
        cls = _PillowGuard
        with cls._lock:
            cls._depth += 1
            if cls._depth == 1:
                filters = warnings.catch_warnings()
                cls._saved = ImageFile.LOAD_TRUNCATED_IMAGES, filters
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *_: object) -> None:
        cls = _PillowGuard
        with cls._lock:
            cls._depth -= 1
            if cls._depth == 0 and cls._saved is not None:
                ImageFile.LOAD_TRUNCATED_IMAGES, filters = cls._saved
                filters.__exit__(None, None, None)


def read_bytes(path: str) -> bytes:
    """The bytes of a regular file. Raises ImageError: unreadable, or bomb if it is larger than any image may be."""
    try:
        # without O_NONBLOCK a named pipe would be waited for until somebody writes to it
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ImageError(f"no regular file: {path!r}. Remove it.", "unreadable")
            if facts.st_size > MAX_BYTES:
                raise ImageError(f"too large for an image: {path!r} has {facts.st_size:,} bytes. Remove it.", "bomb")
            return file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"the file can't be read: {path!r} ({reason}). Check its name and rights.", "unreadable"
        ) from None


def decode(data: bytes, name: str, draft_size: int) -> Image.Image:
    """The first frame of an image file, in its own mode; a JPEG four times as large as needed at a lower resolution.

    Raises ImageError, before a pixel is decoded where the header tells that the image is not wanted.
    """
    if not data:
        raise ImageError(f"the file is empty: {name!r}. Remove it.", "empty")
    plain = _plain_jpeg(data, name, draft_size)
    if plain is not None:
        return plain
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image.size, name)
        if image.format == "JPEG" and min(image.size) >= 4 * draft_size:
            image.draft(None, (2 * draft_size, 2 * draft_size))
        image.load()
        return image
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise ImageError(f"the file is no image: {name!r}. Give one of {kinds}.", "not_an_image") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels: {name!r} ({error}). Make it smaller.", "bomb") from None
    except Exception as error:
        # broken files make decoders raise nearly anything
        reason = " ".join(str(error).split())
        raise ImageError(f"the image is damaged: {name!r} ({reason}). Restore or remove it.", "truncated") from None


def _plain_jpeg(data: bytes, name: str, draft_size: int) -> Image.Image | None:
    """A whole grey or YCbCr JPEG without EXIF, of no more than four times the size; None: Pillow's to judge."""
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff") or b"Exif\x00" in data or b"MPF\x00" in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    wanted = {"YCbCr": "RGB", "Gray": "GRAY"}.get(colours)
    if wanted is None:
        return None
    _check_size((width, height), name)
    if min(width, height) >= 4 * draft_size:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, wanted)
    except ValueError:
        return None
    return Image.fromarray(pixels[..., 0] if wanted == "GRAY" else pixels)


def _check_size(size: tuple[int, int], name: str) -> None:
    short, long = sorted(size)
    shown = f"{name!r} is {size[0]} × {size[1]}"
    if short * long > MAX_PIXELS:
        raise ImageError(f"too many pixels: {shown}, the cap is {MAX_PIXELS:,}. Make it smaller.", "bomb")
    if short < MIN_SIDE:
        raise ImageError(f"the image is too small: {shown}, at least {MIN_SIDE} px are needed. Remove it.", "too_small")
    if long >= MAX_ASPECT * short:
        raise ImageError(f"the image is a strip: {shown}, {MAX_ASPECT} : 1 or more. Remove it.", "extreme_aspect")


def _upright(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it; an EXIF block too corrupt to tell counts as none."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        return image
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Grey or RGB: 16-bit values are divided by 256, transparency is laid on white. Raises ValueError."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F":
            eight_bit = np.clip(np.nan_to_num(values, nan=0.0), 0, 255)
        else:
            eight_bit = np.clip(values, 0, 65535) // 256
        image = Image.fromarray(eight_bit.astype(np.uint8))
    if image.mode in ("LAB", "La"):
        image = image.convert("RGB" if image.mode == "LAB" else "LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image if image.mode == mode else image.convert(mode)
