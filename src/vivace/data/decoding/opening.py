"""How each format is opened: judged by its header, decoded within the memory granted, set upright, 8 bits deep."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vivace.data.decoding.formats import HEAD_BYTES, SPOKEN, sniff, unread_format
from vivace.data.decoding.gif import check_gif
from vivace.data.decoding.headers import (
    Jpeg,
    Tiff,
    Unfit,
    canvas_of_webp,
    orientation_in,
    read_jpeg,
    read_tiff,
    slim_png,
)
from vivace.data.decoding.jpeg import decode_plain_jpeg
from vivace.data.decoding.memory import FREE
from vivace.data.decoding.needs import ARRAY, NEEDED, bytes_a_pixel, check_avif
from vivace.data.decoding.picture import (
    JPEG_FACTOR,
    Limits,
    Picture,
    load_picture,
    raw_mode,
    turned,
)
from vivace.data.decoding.ppm import decode_ppm, read_ppm_header
from vivace.data.decoding.tones import Depth

__all__ = ["header_size", "open_picture"]

# bytes of a JPEG header that is kept to compare others with
MAX_KEPT = 4096
# of a TIFF file: as many as Pillow knows
MAX_CHANNELS = 6
# Pillow reads run-length coded BMP byte by byte, in Python
MAX_BMP_RUNS = 4 << 20
Reader = Callable[[bytes, Limits], contextlib.AbstractContextManager[Picture]]


def open_picture(data: bytes, limits: Limits) -> contextlib.AbstractContextManager[Picture]:
    """The picture of a file, while the memory for it is held.

    Raises Unfit, with NAME where the file's name belongs, MemoryError, and whatever decoders raise for broken files.
    """
    kind = sniff(data[:HEAD_BYTES])
    if kind is None:
        raise _unidentified(data)
    return READERS[kind](data, limits)


def header_size(data: bytes) -> tuple[int, int]:
    """Width and height of a file as they are stored, by its header; raises as `open_picture` does."""
    kind = sniff(data[:HEAD_BYTES])
    if kind == "JPEG":
        header = read_jpeg(data)
        return (header.width, header.height) if header else (0, 0)
    if kind == "PPM":
        return read_ppm_header(data)[:2]
    if kind == "WEBP":
        return canvas_of_webp(data) or (0, 0)
    if kind == "GIF":
        return check_gif(data)
    if kind is None:
        raise _unidentified(data)
    CHECKS.get(kind, lambda data: None)(data)
    if kind == "HEIF":
        image: Image.Image = _heif_plugin()(io.BytesIO(data))
        return image.size
    return Image.open(io.BytesIO(slim_png(data) if kind == "PNG" else data), formats=[kind]).size


def _unidentified(data: bytes) -> Unfit:
    if data.startswith((b"%!PS", b"%PDF", b"SIMPLE  =", b"\xc5\xd0\xd3\xc6", b"8BPS")) or data[8:10] == b"CR":
        return Unfit(f"the format is not allowed: NAME. Convert it to {SPOKEN}.", "format_not_allowed")
    if kind := unread_format(data[:HEAD_BYTES]):
        return Unfit(f"the image is of a format that is not read ({kind}): NAME. Save it as PNG.", "format_not_allowed")
    return Unfit("the file is no image: NAME. Restore it from a copy, or leave it out.", "not_an_image")


@contextlib.contextmanager
def _ppm(data: bytes, limits: Limits) -> Iterator[Picture]:
    width, height, *_ = read_ppm_header(data)
    limits.check((width, height))
    values = width * height * (3 if data[1:2] in b"36" else 1)
    # numbers in text are checked, and then parsed; an array of 8 bits stays beside the image that is made of it
    needed = 2 * len(data) + 5 * values if data[1:2] in b"123" else 0
    with limits.grant(max(needed, ARRAY * width * height), (width, height)):
        yield Picture(decode_ppm(data), "PPM")


class _Last:
    """The JPEG header that was read last: small pictures of one encoder and size have the same, byte by byte."""

    # one value, so that threads see it whole
    header: tuple[bytes, Jpeg] | None = None


def _header_of(data: bytes) -> Jpeg | None:
    """As `read_jpeg`; equal headers may be one object."""
    last = _Last.header
    if last is not None and data.startswith(last[0]):
        return last[1]
    found = read_jpeg(data)
    # of several scans what follows counts too
    if found is not None and not found.buffered and found.end <= min(len(data) - 4, MAX_KEPT):
        _Last.header = data[: found.end], found
    return found


def _jpeg(data: bytes, limits: Limits) -> contextlib.AbstractContextManager[Picture]:
    header = _header_of(data)
    if header is None:
        raise Unfit(
            "the image is damaged: NAME (it ends before its pixels). Restore it from a copy, or leave it out.",
            "truncated",
        )
    width, height = header.width, header.height
    times = limits.shrink(width, height)
    limits.check((width, height), limits.max_pixels * (JPEG_FACTOR if times > 1 else 1))
    decoded = -(-width // times) * -(-height // times)
    if decoded > limits.max_pixels:
        limits.check((width, height))
    orientation = orientation_in(header.exif, header.xmp) if header.exif or header.xmp else 1
    # turned, or of four inks, there is a second one
    twice = orientation != 1 or len(header.sampling) > 3
    needed = max(header.coefficient_bytes() + 4 * decoded, (8 if twice else ARRAY) * decoded)
    held = limits.grant(needed, (-(-width // times), -(-height // times)), header.dropped() and len(data))

    def decode() -> Picture:
        return Picture(_decode_jpeg(header.slim(data), header, limits, times, orientation), "JPEG")

    # of a small picture nothing is held, and a generator less takes a twentieth of its time
    return contextlib.nullcontext(decode()) if held is FREE else _while(held, decode)


@contextlib.contextmanager
def _while(held: contextlib.AbstractContextManager[None], decode: Callable[[], Picture]) -> Iterator[Picture]:
    with held:
        yield decode()


def _decode_jpeg(data: bytes, header: Jpeg, limits: Limits, times: int, orientation: int) -> Image.Image | np.ndarray:
    plain = decode_plain_jpeg(data) if times == 1 else None
    if plain is not None and plain.shape[:2] == (header.height, header.width):
        if orientation == 1:
            return plain
        image = Image.fromarray(plain[..., 0] if plain.shape[2] == 1 else plain)
        plain = None
    else:
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
        if image.size != (header.width, header.height):
            raise Unfit(
                "the image is damaged: NAME (it has two sizes). Restore it from a copy, or leave it out.", "truncated"
            )
        if times > 1 and limits.draft_size is not None:
            image.draft(None, (2 * limits.draft_size, 2 * limits.draft_size))
        image.load()
    return turned(image, orientation)


@contextlib.contextmanager
def _webp(data: bytes, limits: Limits) -> Iterator[Picture]:
    # its decoder makes the canvas as soon as a file is opened
    size = canvas_of_webp(data)
    if size is not None:
        limits.check(size)
        with limits.grant(size[0] * size[1] * NEEDED["WEBP"], size):
            image = Image.open(io.BytesIO(data), formats=["WEBP"])
            limits.check(image.size)
            picture = load_picture(image, "WEBP")
            # with its decoder, where it was turned
            del image
            yield picture
        return
    raise Unfit(
        "the image is damaged: NAME (its header is wrong). Restore it from a copy, or leave it out.", "truncated"
    )


@contextlib.contextmanager
def _png(data: bytes, limits: Limits) -> Iterator[Picture]:
    slim, animated = slim_png(data), b"acTL" in data[:4096]
    beside = 0 if slim is data else len(slim)
    with _loaded("PNG", slim, limits, beside=beside) as picture:
        picture.notes += ("several_pictures",) * animated
        yield picture


@contextlib.contextmanager
def _gif(data: bytes, limits: Limits) -> Iterator[Picture]:
    limits.check(check_gif(data))
    with _loaded("GIF", data, limits) as picture:
        picture.notes += ("several_pictures",) * (b"NETSCAPE2.0" in data[:8192])
        yield picture


@contextlib.contextmanager
def _bmp(data: bytes, limits: Limits) -> Iterator[Picture]:
    if len(data) > MAX_BMP_RUNS and data[30:34] in (b"\x01\0\0\0", b"\x02\0\0\0"):
        raise Unfit(f"NAME has over {MAX_BMP_RUNS:,} bytes of runs. Save it as PNG.")
    with _loaded("BMP", data, limits) as picture:
        yield picture


@contextlib.contextmanager
def _avif(data: bytes, limits: Limits) -> Iterator[Picture]:
    check_avif(data)
    with _loaded("AVIF", data, limits) as picture:
        yield picture


@contextlib.contextmanager
def _heif(data: bytes, limits: Limits) -> Iterator[Picture]:
    image = _heif_plugin()(io.BytesIO(data))
    limits.check(image.size)
    with limits.grant(image.width * image.height * NEEDED["HEIF"], image.size):
        picture = load_picture(image, "HEIF")
        del image
        yield picture


def _heif_plugin() -> Any:
    # pi_heif 1.4, which lacks the encoder, dies of damaged metadata: it is not used
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError:
        raise Unfit(
            "NAME is HEIC, which needs pillow-heif. Install it: pip install 'pillow-heif>=1.8' (or 'vivace[heic]').",
            "missing_extra",
        ) from None
    return HeifImageFile


@contextlib.contextmanager
def _tiff(data: bytes, limits: Limits) -> Iterator[Picture]:
    header = read_tiff(data)
    if 0xC612 in header.values:
        raise Unfit("the format is not allowed: NAME is a raw photo (DNG). Develop it to JPEG.", "format_not_allowed")
    block, samples = header.block_bytes(), int(header.number(277, 1))
    try:
        if samples > MAX_CHANNELS:
            # Pillow would say so in a log of its own
            raise UnidentifiedImageError
        # Pillow hands libtiff a copy of the file
        with _loaded("TIFF", data, limits, _depth_of(header), block=block, beside=len(data)) as picture:
            picture.notes += ("several_pictures",) * header.more + ("channels_dropped",) * (samples > 4)
            yield picture
    except UnidentifiedImageError:
        bits = int(header.number(258, 1))
        raise Unfit(
            f"the colours can't be converted: NAME has {samples} channel{'s' * (samples > 1)} of {bits} bits "
            f"({_sample_format(header)}). Save it as grey or RGB of 8 or 16 bits.",
            "not_convertible",
        ) from None


def _sample_format(header: Tiff) -> str:
    known = {1: "unsigned", 2: "signed", 3: "float"}
    return known.get(int(header.number(339, 1)), "complex or unknown")


def _depth_of(header: Tiff) -> Depth:
    bits, kind = int(header.number(258, 1)), int(header.number(339, 1))
    declared = max(header.number(281), header.number(341))
    white = None
    # of another value it is the brightest that this image happens to have
    if declared == 1 or (declared >= 255 and math.isfinite(declared) and math.log2(declared + 1).is_integer()):
        white = int(declared)
    elif 8 < bits < 16:
        white = 2**bits - 1
    text = header.values.get(42113, ())
    missing = None
    with contextlib.suppress(ValueError):
        missing = float(bytes(int(value) for value in text).split(b"\0")[0])
    # Pillow turns 8 bits and fewer around itself
    inverted = header.number(262, 1) == 0 and bits > 8
    return Depth(white, unsigned=kind == 1, signed=kind == 2 and bits == 8, inverted=inverted, missing=missing)


@contextlib.contextmanager
def _loaded(
    kind: str,
    data: bytes,
    limits: Limits,
    depth: Depth = Depth(),  # noqa: B008 (it is frozen)
    *,
    block: int = 0,
    beside: int = 0,
) -> Iterator[Picture]:
    """A file opened and decoded by Pillow, while memory is held to decode and convert it.

    block: bytes of what its decoder unpacks at once, where that is more than rows; beside: as for `Limits.grant`.
    """
    image = Image.open(io.BytesIO(data), formats=[kind])
    limits.check(image.size)
    limits.check_deep(raw_mode(image), image.size)
    pixels = image.width * image.height
    decoding, converting = bytes_a_pixel(image, kind, data)
    with limits.grant(max(pixels * decoding + block, pixels * converting), image.size, beside):
        picture = load_picture(image, kind, lambda: Image.open(io.BytesIO(data), formats=[kind]), depth)
        # where another picture was made of it, that one alone is kept
        del image
        yield picture


CHECKS: dict[str, Callable[[bytes], object]] = {"TIFF": read_tiff, "AVIF": check_avif}
READERS: dict[str, Reader] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "BMP": _bmp,
    "GIF": _gif,
    "TIFF": _tiff,
    "PPM": _ppm,
    "AVIF": _avif,
    "HEIF": _heif,
}
