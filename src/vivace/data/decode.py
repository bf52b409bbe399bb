"""Decoding: the one function that opens an image file, with every guard against what may be in it."""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from vivace.data.formats import EXTENSIONS, FORMATS, REFUSED_EXTENSIONS, SPOKEN, sniff
from vivace.data.jpeg import decode_plain_jpeg
from vivace.errors import ImageError

__all__ = [
    "EXTENSIONS",
    "REFUSED_EXTENSIONS",
    "PillowGuard",
    "decode_bytes",
    "image_of",
    "read_bytes",
    "read_image",
    "shown",
    "sniff",
]

# multi-picture JPEGs come out of the JPEG plugin, and have none of their own
OPENED = tuple(name for name in FORMATS if name not in ("MPO", "HEIF"))
MAX_PIXELS = 100_000_000
# what MAX_PIXELS weigh uncompressed, and some: a larger file is not even read
MAX_BYTES = 1 << 30
MIN_SIDE = 4
MAX_ASPECT = 50


class PillowGuard:
    """Holds Pillow to one behaviour while any thread decodes, whatever the program around us has set.

    Pillow keeps its settings in globals: LOAD_TRUNCATED_IMAGES, which many programs set, would let half an image pass,
    and a filter that makes errors of warnings would turn odd metadata into another image. `warnings.catch_warnings`
    alone is not safe in threads: when two overlap, the last one to leave restores what the other had changed.
    """

    _lock = threading.Lock()
    _depth = 0
    _saved_truncated = False
    _saved_filters: warnings.catch_warnings | None = None

    def __enter__(self) -> None:
        cls = PillowGuard
        with cls._lock:
            cls._depth += 1
            if cls._depth == 1:
                cls._saved_truncated, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
                cls._saved_filters = warnings.catch_warnings()
                cls._saved_filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(self, *_: object) -> None:
        cls = PillowGuard
        with cls._lock:
            cls._depth -= 1
            if cls._depth == 0 and cls._saved_filters is not None:
                cls._saved_filters.__exit__(None, None, None)
                ImageFile.LOAD_TRUNCATED_IMAGES = cls._saved_truncated


def read_image(
    source: Path | str | bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    draft_size: int | None = None,
    check_extension: bool = False,
) -> Image.Image | np.ndarray:
    """The decoded first frame of an image file, in its own mode; a plain JPEG as its pixels, uint8 [H, W, 3 | 1].

    source: a path, or an encoded file's bytes. draft_size: a JPEG at least four times as large may be decoded at a
    lower resolution, still at least twice this side. check_extension: a path whose extension disagrees with the
    content is refused.
    Raises ImageError whose `problem` is one of unreadable, empty, not_an_image, format_not_allowed, bomb, too_small,
    extreme_aspect, extension_mismatch, truncated.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bytes(source)
    return decode_bytes(data, name, max_pixels=max_pixels, draft_size=draft_size, check_extension=check_extension)


def image_of(pixels: np.ndarray) -> Image.Image:
    """uint8 [H, W], [H, W, 1] or [H, W, 3] as a Pillow image, mode L or RGB."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def read_bytes(path: Path | str) -> bytes:
    """The bytes of a regular file. Raises ImageError: unreadable, or bomb if it is larger than any image may be."""
    try:
        # without O_NONBLOCK a named pipe called .jpg would be waited for until somebody writes to it
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise ImageError(f"no regular file: {shown(path)}. Remove it.", problem="unreadable")
            if facts.st_size > MAX_BYTES:
                raise ImageError(
                    f"the file is too large for an image: {shown(path)} has {facts.st_size:,} bytes, "
                    f"the cap is {MAX_BYTES:,}. Remove it.",
                    problem="bomb",
                )
            return io.FileIO(descriptor, closefd=False).readall()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ImageError(
            f"the file can't be read: {shown(path)} ({error.strerror}). Check its rights.", problem="unreadable"
        ) from None
    except ValueError as error:
        # a zero byte, or a character that has no bytes
        raise ImageError(f"the name is no file's: {shown(path)} ({error}). Correct it.", problem="unreadable") from None


def decode_bytes(
    data: bytes,
    name: str,
    *,
    max_pixels: int = MAX_PIXELS,
    draft_size: int | None = None,
    check_extension: bool = False,
) -> Image.Image | np.ndarray:
    """`read_image` of bytes already read; `name` is used in messages and for its extension."""
    if not data:
        raise ImageError(f"the file is empty: {shown(name)}. Remove it.", problem="empty")
    plain = decode_plain_jpeg(
        data, lambda size: _check_header(size, "JPEG", name, max_pixels, check_extension), draft_size=draft_size
    )
    if plain is not None:
        return plain
    try:
        with PillowGuard():
            image = Image.open(io.BytesIO(data), formats=OPENED)
            _check_header(image.size, image.format or "", name, max_pixels, check_extension)
            if draft_size is not None and image.format == "JPEG" and min(image.size) >= 4 * draft_size:
                image.draft(None, (2 * draft_size, 2 * draft_size))
            image.load()
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise _unidentified(data, name) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels: {shown(name)} ({error}). Make it smaller.", problem="bomb") from None
    except Exception as error:
        # broken files make decoders raise nearly anything: OSError, SyntaxError, ValueError, struct.error, IndexError
        reason = " ".join(str(error).split())
        raise ImageError(
            f"the image is damaged: {shown(name)} ({reason}). Restore or remove it.", problem="truncated"
        ) from None
    return image


def _check_header(size: tuple[int, int], kind: str, name: str, max_pixels: int, check_extension: bool) -> None:
    """Judge by the header alone, before a single pixel is decoded; `kind` is Pillow's name of the format."""
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"too many pixels: {shown(name)} is {width} × {height}, the cap is {max_pixels:,}. Make it smaller.",
            problem="bomb",
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"the image is too small: {shown(name)} is {width} × {height}, at least {MIN_SIDE} px are needed. "
            "Remove it.",
            problem="too_small",
        )
    if max(width, height) >= MAX_ASPECT * min(width, height):
        raise ImageError(
            f"the image is a strip: {shown(name)} is {width} × {height}, {MAX_ASPECT} : 1 or more. Remove it.",
            problem="extreme_aspect",
        )
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122 (60,000 Path objects are a second's work)
    if check_extension and extension in EXTENSIONS and extension not in FORMATS[kind]:
        raise ImageError(
            f"extension and content disagree: {shown(name)} is {kind}. Rename it.",
            problem="extension_mismatch",
        )


def _unidentified(data: bytes, name: str) -> ImageError:
    known_but_refused = data.startswith((b"%!PS", b"%PDF", b"SIMPLE  =", b"\xc5\xd0\xd3\xc6", b"8BPS"))
    if known_but_refused:
        return ImageError(
            f"the format is not allowed: {shown(name)}. Convert it to {SPOKEN}.",
            problem="format_not_allowed",
        )
    return ImageError(f"the file is no image: {shown(name)}. Remove it, or restore it.", problem="not_an_image")


def shown(name: Path | str) -> str:
    """A name fit for one line of text: newlines and bytes that are no UTF-8 are escaped."""
    text = str(name)
    return text if text.isprintable() else ascii(text)
