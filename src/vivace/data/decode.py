"""Decoding: the one function that opens an image file, with every guard against what may be in it."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from vivace.errors import ImageError

__all__ = ["EXTENSIONS", "REFUSED_EXTENSIONS", "read_image"]

# format → extensions. An allow-list: Pillow would hand EPS to Ghostscript, and FITS or PDF are no photos
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
# multi-picture JPEGs come out of the JPEG plugin, and have none of their own
OPENED = tuple(name for name in FORMATS if name != "MPO")
EXTENSIONS = frozenset(extension for extensions in FORMATS.values() for extension in extensions)
REFUSED_EXTENSIONS = frozenset(
    (".eps", ".ps", ".pdf", ".fits", ".fit", ".svg", ".wmf", ".emf", ".psd", ".hdf5", ".h5", ".dcm", ".raw", ".dng")
)
MAX_PIXELS = 100_000_000
MIN_SIDE = 4
MAX_ASPECT = 50


def read_image(
    source: Path | str | bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    draft_size: int | None = None,
    check_extension: bool = False,
) -> Image.Image:
    """The decoded first frame of an image file, in its own mode.

    source: a path, or an encoded file's bytes. draft_size: a JPEG at least four times as large may be decoded at a
    lower resolution, still at least twice this side. check_extension: a path whose extension disagrees with the
    content is refused.
    Raises ImageError whose `problem` is one of unreadable, empty, not_an_image, format_not_allowed, bomb, too_small,
    extreme_aspect, extension_mismatch, truncated.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else _read(source)
    return decode_bytes(data, name, max_pixels=max_pixels, draft_size=draft_size, check_extension=check_extension)


def _read(path: Path | str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (60,000 Path objects are a second's work)
            return file.read()
    except OSError as error:
        raise ImageError(
            f"the file can't be read: {path} ({error.strerror}). Check its rights.", problem="unreadable"
        ) from None


def decode_bytes(
    data: bytes,
    name: str,
    *,
    max_pixels: int = MAX_PIXELS,
    draft_size: int | None = None,
    check_extension: bool = False,
) -> Image.Image:
    """`read_image` of bytes already read; `name` is used in messages and for its extension."""
    if not data:
        raise ImageError(f"the file is empty: {name}. Remove it.", problem="empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images and odd metadata; the cap below and the decoder decide
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=OPENED)
            _check_header(image, name, max_pixels, check_extension)
            if draft_size is not None and image.format == "JPEG" and min(image.size) >= 4 * draft_size:
                image.draft(None, (2 * draft_size, 2 * draft_size))
            image.load()
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(data, name) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels: {name} ({error}). Make it smaller.", problem="bomb") from None
    except Exception as error:
        # broken files make decoders raise nearly anything: OSError, SyntaxError, ValueError, struct.error, IndexError
        reason = " ".join(str(error).split())
        raise ImageError(
            f"the image is damaged: {name} ({reason}). Restore or remove it.", problem="truncated"
        ) from None
    return image


def _check_header(image: Image.Image, name: str, max_pixels: int, check_extension: bool) -> None:
    """Judge by the header alone, before a single pixel is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"too many pixels: {name} is {width} × {height}, the cap is {max_pixels:,}. Make it smaller.",
            problem="bomb",
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"the image is too small: {name} is {width} × {height}, at least {MIN_SIDE} px are needed. Remove it.",
            problem="too_small",
        )
    if max(width, height) >= MAX_ASPECT * min(width, height):
        raise ImageError(
            f"the image is a strip: {name} is {width} × {height}, {MAX_ASPECT} : 1 or more. Remove it.",
            problem="extreme_aspect",
        )
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122 (60,000 Path objects are a second's work)
    if check_extension and extension in EXTENSIONS and extension not in FORMATS[image.format or ""]:
        raise ImageError(
            f"extension and content disagree: {name} is {image.format}. Rename it.", problem="extension_mismatch"
        )


def _unidentified(data: bytes, name: str) -> ImageError:
    known_but_refused = data.startswith((b"%!PS", b"%PDF", b"SIMPLE  =", b"\xc5\xd0\xd3\xc6", b"8BPS"))
    if known_but_refused:
        return ImageError(
            f"the format is not allowed: {name}. Convert it to JPEG, PNG, WebP, BMP, GIF, TIFF or PPM.",
            problem="format_not_allowed",
        )
    return ImageError(f"the file is no image: {name}. Remove it, or restore it.", problem="not_an_image")
