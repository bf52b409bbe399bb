"""Opens image files: the single entry point, with all checks against damaged and malicious files."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from vivace.data.decoding.formats import EXTENSIONS, FORMATS, HEAD_BYTES, NPY, REFUSED_EXTENSIONS, sniff
from vivace.data.decoding.headers import Unfit
from vivace.data.decoding.memory import READING
from vivace.data.decoding.opening import header_size, open_picture
from vivace.data.decoding.picture import Limits, Picture
from vivace.errors import ImageError
from vivace.silenced import Silenced

__all__ = [
    "EXTENSIONS",
    "MAX_PIXELS",
    "REFUSED_EXTENSIONS",
    "Picture",
    "PillowGuard",
    "advice",
    "check_size",
    "decode_bytes",
    "decoding",
    "image_errors",
    "image_of",
    "load_opened",
    "mismatch",
    "read_bytes",
    "read_image",
    "reading",
    "shown",
    "size_of",
    "sniff",
]

MAX_PIXELS = 100_000_000
# a larger file is not read; as many bytes as MAX_PIXELS may take when decoded
MAX_BYTES = 768_000_000
# smaller files are read by a single call
SMALL_FILE = 1 << 16
# characters of a name in a message
MAX_SHOWN = 300
# a lazily opened Pillow image is decoded in place, which two threads can't do at once
_opening = threading.Lock()
# error numbers of the system → what to do
ADVICE = (
    ((errno.EACCES, errno.EPERM), "Check its permissions."),
    ((errno.ENOENT, errno.ENOTDIR), "Check the path: was it moved or renamed?"),
    ((errno.ELOOP,), "Fix the link, or leave it out."),
    ((errno.ENAMETOOLONG,), "Give it a shorter name."),
    ((errno.EMFILE, errno.ENFILE), "Close other files, or raise the limit (ulimit -n)."),
    ((errno.EIO,), "The disk fails: restore it from a copy."),
)


class PillowGuard:
    """Gives Pillow fixed settings while any thread decodes, whatever the calling program has set.

    Pillow's settings are globals. LOAD_TRUNCATED_IMAGES, which many programs set, would accept half an image; a filter
    that makes warnings errors would change how odd metadata is read; and MAX_IMAGE_PIXELS would refuse what
    `max_pixels` allows (`Limits` checks every size before decoding). If two threads overlap, the last one out would
    restore the settings of the other. Hence the counter.
    """

    _lock = threading.Lock()
    _depth = 0
    _saved_truncated = False
    _saved_pixels: int | None = None
    _warnings = Silenced(r"PIL\.")

    def __enter__(self) -> None:
        cls = PillowGuard
        with cls._lock:
            cls._depth += 1
            if cls._depth == 1:
                cls._saved_truncated, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
                cls._saved_pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                cls._warnings.__enter__()

    def __exit__(self, *_: object) -> None:
        cls = PillowGuard
        with cls._lock:
            cls._depth -= 1
            if cls._depth == 0:
                cls._warnings.__exit__()
                ImageFile.LOAD_TRUNCATED_IMAGES = cls._saved_truncated
                Image.MAX_IMAGE_PIXELS = cls._saved_pixels


def read_image(
    source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS, draft_size: int | None = None
) -> Image.Image | np.ndarray:
    """The first picture of an image file, upright, 8 bits per channel: a Pillow image or uint8 [H, W, 3 | 1].

    source: a path, or the bytes of an encoded file. max_pixels: limit on the decoded pixels, which also bounds memory.
    draft_size: a JPEG at least four times as large may be decoded at a lower resolution, of at least twice this size.
    Raises ImageError; its `problem` is unreadable, empty, not_an_image, format_not_allowed, missing_extra, bomb,
    too_small, extreme_aspect, truncated or not_convertible.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bytes(source)
    return decode_bytes(data, name, max_pixels=max_pixels, draft_size=draft_size)


@contextlib.contextmanager
def decoding(
    source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS, draft_size: int | None = None
) -> Iterator[tuple[bytes, Picture]]:
    """A context with (bytes of the file, decoded picture), which holds the memory for both; else as `read_image`."""
    name = "the image" if isinstance(source, bytes) else str(source)
    limits = Limits(max_pixels, draft_size)
    if isinstance(source, bytes):
        with _opened(source, name, limits) as picture:
            yield source, picture
    else:
        with reading(source) as data, _opened(data, name, limits) as picture:
            yield data, picture


def decode_bytes(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, draft_size: int | None = None
) -> Image.Image | np.ndarray:
    """`read_image` for bytes already read; `name` is used in messages."""
    with _opened(data, name, Limits(max_pixels, draft_size)) as picture:
        return picture.pixels


def mismatch(name: str, kind: str) -> bool:
    """Whether a file's extension belongs to another format than its content, which is `kind`."""
    if name.endswith(FORMATS.get(kind, ())):
        return False
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122 (60,000 Path objects are a second's work)
    return (
        extension in EXTENSIONS
        and extension not in FORMATS.get(kind, ())
        and not (kind == "JPEG" and extension == ".mpo")
    )


def size_of(source: Path | str | bytes) -> tuple[int, int]:
    """(width, height) of an image file, or of its bytes, by its header, without decoding it. Raises ImageError."""
    if isinstance(source, bytes):
        with PillowGuard(), image_errors("the image"):
            return header_size(source)
    with reading(source) as data, PillowGuard(), image_errors(str(source)):
        return header_size(data)


class _opened:  # noqa: N801 (a context manager; contextlib's take five times as long)
    """A context with the picture in a file's bytes, which holds the memory for it and guards Pillow."""

    def __init__(self, data: bytes, name: str, limits: Limits) -> None:
        self._data, self._name, self._limits = data, name, limits

    def __enter__(self) -> Picture:
        if not self._data:
            raise ImageError(
                f"the file is empty: {shown(self._name)}. Restore it from a copy, or leave it out.", problem="empty"
            )
        self._guard = PillowGuard()
        self._guard.__enter__()
        try:
            with image_errors(self._name):
                self._open = open_picture(self._data, self._limits)
                return self._open.__enter__()
        except BaseException:
            self._guard.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            # an error in the body of the context is not the file's: don't pass it on
            self._open.__exit__(None, None, None)
        finally:
            self._guard.__exit__()


class image_errors:  # noqa: N801 (a context manager; contextlib's take five times as long)
    """Turns whatever a decoder raises, except MemoryError, into an ImageError of one line."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, MemoryError):
            raise _image_error(error, self._name) from None


def _image_error(error: Exception, name: str) -> ImageError:
    if isinstance(error, Unfit):
        text = str(error)
        # texts without NAME come from checks that don't know the file's name
        text = text.replace("NAME", shown(name)) if "NAME" in text else f"not decoded: {shown(name)}: {text}"
        return ImageError(text, problem=error.problem)
    # damaged files make decoders raise nearly anything: OSError, SyntaxError, ValueError, struct.error, IndexError
    return ImageError(
        f"the image is damaged: {shown(name)} ({_reason(error)}). Restore it from a copy, or leave it out.",
        problem="truncated",
    )


def _reason(error: Exception) -> str:
    """The text of a decoder's error, in one line of printable characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        # Pillow's text names a Python object
        text = "its header is invalid"
    return "".join(c if c.isprintable() else "?" for c in text[:150])


def load_opened(image: Image.Image, *, max_pixels: int) -> None:
    """Decode a lazily opened Pillow image in place. Raises ImageError as `read_image` does for its file."""
    with _opening, PillowGuard(), image_errors("the image"):
        Limits(max_pixels).check(image.size)
        image.load()


def check_size(width: int, height: int, *, max_pixels: int) -> None:
    """Raise ImageError if an image of this size is refused: bomb, too_small, extreme_aspect."""
    with image_errors("the image"):
        Limits(max_pixels).check((width, height))


def image_of(pixels: np.ndarray) -> Image.Image:
    """A Pillow image, mode L or RGB, of uint8 [H, W], [H, W, 1] or [H, W, 3]."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def read_bytes(path: Path | str) -> bytes:
    """The bytes of a regular file. Raises ImageError: unreadable, or bomb if it is larger than an image may be."""
    with reading(path) as data:
        return data


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[bytes]:
    """A context with the bytes of a file, which holds the memory for them; only the first ones if it is no image."""
    try:
        # without O_NONBLOCK opening a named pipe would block until somebody writes to it
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    try:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise ImageError(f"this is a folder: {shown(path)}. Give image files.", problem="unreadable")
        if not stat.S_ISREG(facts.st_mode):
            raise ImageError(
                f"not a regular file: {shown(path)} is a pipe, socket or device. Give image files.",
                problem="unreadable",
            )
        if facts.st_size > MAX_BYTES:
            raise ImageError(
                f"the file is too large for an image: {shown(path)} has {facts.st_size:,} bytes, "
                f"the limit is {MAX_BYTES:,}. Make it smaller, or leave it out.",
                problem="bomb",
            )
        with READING.hold(facts.st_size):
            try:
                # asking for one byte more shows the end of a small file without a second call; a large file is read on
                # only if it is an image
                small = facts.st_size < SMALL_FILE
                data = os.read(descriptor, facts.st_size + 1 if small else HEAD_BYTES)
                if len(data) != facts.st_size and (sniff(data[:HEAD_BYTES]) or data.startswith(NPY)):
                    data += io.FileIO(descriptor, closefd=False).readall()
            except OSError as error:
                raise _unreadable(path, error) from None
            yield data
    finally:
        os.close(descriptor)


def _unreadable(path: Path | str, error: OSError | ValueError) -> ImageError:
    if isinstance(error, OSError):
        return ImageError(
            f"the file can't be read: {shown(path)} ({error.strerror}). {advice(error)}", problem="unreadable"
        )
    # a null byte, or a character that can't be encoded
    return ImageError(f"the file name is invalid: {shown(path)} ({error}). Correct it.", problem="unreadable")


def advice(error: OSError) -> str:
    """What to do about a file or folder that the system can't open."""
    return next((text for numbers, text in ADVICE if error.errno in numbers), "Check its disk, or leave it out.")


def shown(name: Path | str) -> str:
    """A name for one line of text: newlines and invalid UTF-8 are escaped, long names are shortened."""
    text = str(name)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= MAX_SHOWN else f"{text[:80]}…{text[80 - MAX_SHOWN :]}"
