"""Opens each format: checks the header, decodes within the memory limit, rotates upright, reduces to 8 bits."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vivace.data.decoding.formats import HEAD_BYTES, SUPPORTED, sniff, unsupported_format
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
from vivace.data.decoding.needs import ARRAY, NEEDED, bytes_per_pixel, check_avif
from vivace.data.decoding.picture import (
    JPEG_FACTOR,
    Limits,
    Picture,
    load_picture,
    raw_mode,
    turned,
)
from vivace.data.decoding.ppm import decode_ppm, read_ppm_header
from vivace.data.decoding.raw_tiff import how_to_keep, raw_shape_of, sample_format
from vivace.data.decoding.tones import Depth

__all__ = ["header_size", "open_picture"]

# bytes of a JPEG header that is remembered for the next files
MAX_REMEMBERED = 4096
# of a TIFF file; Pillow supports no more
MAX_CHANNELS = 6
# Pillow reads run-length encoded BMP byte by byte in Python
MAX_BMP_RUNS = 4 << 20
Reader = Callable[[bytes, Limits], contextlib.AbstractContextManager[Picture]]


def open_picture(data: bytes, limits: Limits) -> contextlib.AbstractContextManager[Picture]:
    """A context with the decoded picture of a file, which holds the memory for it.

    Raises Unfit, with NAME in place of the file's name; MemoryError; and whatever decoders raise for damaged files.
    """
    kind = sniff(data[:HEAD_BYTES])
    if kind is None:
        raise _unidentified(data)
    return READERS[kind](data, limits)


def header_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a file by its header, before rotation by EXIF. Raises the same as `open_picture`."""
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
    if (raw := raw_shape_of(data)) is not None:
        return raw[1], raw[0]
    CHECKS.get(kind, lambda data: None)(data)
    if kind == "HEIF":
        image: Image.Image = _heif_plugin()(io.BytesIO(data))
        return image.size
    return Image.open(io.BytesIO(slim_png(data) if kind == "PNG" else data), formats=[kind]).size


def _unidentified(data: bytes) -> Unfit:
    if data.startswith((b"%!PS", b"%PDF", b"SIMPLE  =", b"\xc5\xd0\xd3\xc6", b"8BPS")) or data[8:10] == b"CR":
        return Unfit(f"the format is not allowed: NAME. Convert it to {SUPPORTED}.", "format_not_allowed")
    if kind := unsupported_format(data[:HEAD_BYTES]):
        return Unfit(f"the image format is not supported ({kind}): NAME. Save it as PNG.", "format_not_allowed")
    return Unfit("the file is not an image: NAME. Restore it from a copy, or leave it out.", "not_an_image")


@contextlib.contextmanager
def _ppm(data: bytes, limits: Limits) -> Iterator[Picture]:
    width, height, *_ = read_ppm_header(data)
    limits.check((width, height))
    values = width * height * (3 if data[1:2] in b"36" else 1)
    # a text file is copied for the check and then parsed; the 8-bit array stays beside the image made of it
    needed = 2 * len(data) + 5 * values if data[1:2] in b"123" else 0
    with limits.grant(max(needed, ARRAY * width * height), (width, height)):
        yield Picture(decode_ppm(data), "PPM")


class _Last:
    """The last JPEG header: small pictures from one encoder often have identical headers."""

    # a single value, so that threads never see half of it
    header: tuple[bytes, Jpeg] | None = None


def _header_of(data: bytes) -> Jpeg | None:
    """The result of `read_jpeg`; equal headers may share one object."""
    last = _Last.header
    if last is not None and data.startswith(last[0]):
        return last[1]
    found = read_jpeg(data)
    # with several scans the header alone does not determine the result
    if found is not None and not found.buffered and found.end <= min(len(data) - 4, MAX_REMEMBERED):
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
    # rotating it, or converting CMYK, makes a second picture
    twice = orientation != 1 or len(header.sampling) > 3
    needed = max(header.coefficient_bytes() + 4 * decoded, (8 if twice else ARRAY) * decoded)
    held = limits.grant(needed, (-(-width // times), -(-height // times)), header.dropped() and len(data))

    def decode() -> Picture:
        return Picture(_decode_jpeg(header.slim(data), header, limits, times, orientation), "JPEG")

    # small pictures hold no memory, and a generator's overhead matters for them
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
    # its decoder allocates the canvas as soon as a file is opened
    size = canvas_of_webp(data)
    if size is not None:
        limits.check(size)
        with limits.grant(size[0] * size[1] * NEEDED["WEBP"], size):
            image = Image.open(io.BytesIO(data), formats=["WEBP"])
            limits.check(image.size)
            picture = load_picture(image, "WEBP")
            # frees the decoder, and the unrotated picture if there is another one
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
        raise Unfit(f"NAME has over {MAX_BMP_RUNS:,} bytes of run-length encoded data. Save it as PNG.")
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
    # not pi_heif (without the encoder): its version 1.4 crashes on damaged metadata
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
            # raised here because Pillow would also write to its log
            raise UnidentifiedImageError
        # Pillow passes a copy of the file to libtiff
        with _loaded("TIFF", data, limits, _depth_of(header), block=block, beside=len(data)) as picture:
            picture.notes += ("several_pictures",) * header.more + ("channels_dropped",) * (samples > 4)
            yield picture
    except UnidentifiedImageError:
        bits = int(header.number(258, 1))
        raise Unfit(
            f"the colours can't be converted: NAME has {samples} channel{'s' * (samples > 1)} of {bits} bits "
            f"({sample_format(header)}). Save it as grey or RGB of 8 or 16 bits{how_to_keep(data)}.",
            "not_convertible",
        ) from None


def _depth_of(header: Tiff) -> Depth:
    bits, kind = int(header.number(258, 1)), int(header.number(339, 1))
    declared = max(header.number(281), header.number(341))
    white = None
    # any other value is just the brightest one of this image
    if declared == 1 or (declared >= 255 and math.isfinite(declared) and math.log2(declared + 1).is_integer()):
        white = int(declared)
    elif 8 < bits < 16:
        white = 2**bits - 1
    text = header.values.get(42113, ())
    missing = None
    with contextlib.suppress(ValueError):
        missing = float(bytes(int(value) for value in text).split(b"\0")[0])
    # Pillow itself inverts images with up to 8 bits
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
    """A file opened and decoded by Pillow, with the memory held for decoding and converting it.

    block: bytes that its decoder unpacks at once, if more than some rows. beside: as for `Limits.grant`.
    """
    image = Image.open(io.BytesIO(data), formats=[kind])
    limits.check(image.size)
    limits.check_deep(raw_mode(image), image.size)
    pixels = image.width * image.height
    decoding, converting = bytes_per_pixel(image, kind, data)
    with limits.grant(max(pixels * decoding + block, pixels * converting), image.size, beside):
        picture = load_picture(image, kind, lambda: Image.open(io.BytesIO(data), formats=[kind]), depth)
        # if another picture was made of it, free this one
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
