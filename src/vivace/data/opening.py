"""How each format is opened: judged by its header, decoded within the memory granted, set upright, 8 bits deep."""

from __future__ import annotations

import contextlib
import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vivace.data.formats import HEAD_BYTES, SPOKEN, sniff
from vivace.data.headers import (
    Jpeg,
    Tiff,
    Unfit,
    canvas_of_webp,
    check_gif,
    orientation_in,
    read_jpeg,
    read_tiff,
    slim_png,
)
from vivace.data.jpeg import decode_plain_jpeg
from vivace.data.memory import DECODING
from vivace.data.ppm import decode_ppm, read_ppm_header
from vivace.data.tones import Depth, combined, eight_bit

__all__ = ["UPRIGHT", "Limits", "Picture", "header_size", "open_picture"]

MIN_SIDE = 4
MAX_ASPECT = 50
# a JPEG that is decoded at a lower resolution may have as many times the pixels
JPEG_FACTOR = 5
# while it is decoded; 100 megapixels may take 768 MB
BYTES_PER_PIXEL = 7.68
# bytes a pixel that decoders need, measured: WebP and AVIF hold planes, the picture and a copy of it, HEIC rows besides
NEEDED = {"WEBP": 16, "AVIF": 14, "HEIF": 14}
# Pillow reads run-length coded BMP byte by byte, in Python
MAX_BMP_RUNS = 4 << 20
EXIF_ORIENTATION = 0x0112
# EXIF 2.32, tag 0x0112: how the stored picture is turned to stand upright; 1 is as it is
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# raw mode of 16 bits a channel → the one that reads the other byte of each value
SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
OTHER_BYTE = {
    f"{bands};16{order}": f"{bands};16{other}" for bands in ("RGB", "RGBA", "RGBX") for order, other in SWAPPED.items()
}
# grey and alpha: both bytes of each as four channels
GREY_ALPHA = "LA;16B"


@dataclass
class Picture:
    """What an image file holds."""

    pixels: Image.Image | np.ndarray
    """Upright, 8 bits a channel: a Pillow image, or uint8 [H, W, 1 | 3]."""
    kind: str
    """A key of `FORMATS`."""
    notes: tuple[str, ...] = ()
    """several_pictures, channels_dropped: what was left out."""
    white: int | None = None
    """The value that became 255, for more than 8 bits a channel that declare no depth."""


@dataclass(frozen=True)
class Limits:
    """What an image may have, and how small it may be decoded."""

    max_pixels: int
    draft_size: int | None = None

    def check(self, size: tuple[int, int], max_pixels: int | None = None) -> None:
        """Raise Unfit for a size that is not wanted."""
        width, height = size
        cap = max_pixels or self.max_pixels
        if width * height > cap:
            raise Unfit(f"too many pixels: NAME is {width} × {height}, the cap is {cap:,}. {LARGER}")
        if min(width, height) < MIN_SIDE:
            raise Unfit(
                f"the image is too small: NAME is {width} × {height}, at least {MIN_SIDE} px are needed. Remove it.",
                "too_small",
            )
        if max(width, height) >= MAX_ASPECT * min(width, height):
            raise Unfit(
                f"the image is a strip: NAME is {width} × {height}, {MAX_ASPECT} : 1 or more. Remove it.",
                "extreme_aspect",
            )

    def grant(self, needed: float) -> contextlib.AbstractContextManager[None]:
        """Hold so many bytes while decoding. Raises Unfit for more than an image may take."""
        cap = self.max_pixels * BYTES_PER_PIXEL
        if needed > cap:
            raise Unfit(f"decoding NAME takes {needed / 1e6:,.0f} MB, the cap is {cap / 1e6:,.0f} MB. {LARGER}")
        return DECODING.hold(int(needed))

    def shrink(self, width: int, height: int) -> int:
        """How many times smaller a JPEG is decoded, as Pillow chooses: 1, 2, 4 or 8."""
        if self.draft_size is None or min(width, height) < 4 * self.draft_size:
            return 1
        return next(step for step in (8, 4, 2, 1) if min(width, height) // (2 * self.draft_size) >= step)


LARGER = "Make it smaller, or raise data.max_pixels."
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
    return Unfit("the file is no image: NAME. Remove it, or restore it.", "not_an_image")


@contextlib.contextmanager
def _ppm(data: bytes, limits: Limits) -> Iterator[Picture]:
    width, height, *_ = read_ppm_header(data)
    limits.check((width, height))
    values = width * height * (3 if data[1:2] in b"36" else 1)
    # numbers in text are masked, and then parsed
    needed = 4 * len(data) + 4 * values if data[1:2] in b"123" else 2 * values
    with limits.grant(needed + 4 * width * height):
        yield Picture(decode_ppm(data), "PPM")


@contextlib.contextmanager
def _jpeg(data: bytes, limits: Limits) -> Iterator[Picture]:
    header = read_jpeg(data)
    if header is None:
        raise Unfit("the image is damaged: NAME (it ends before its pixels). Restore or remove it.", "truncated")
    width, height = header.width, header.height
    times = limits.shrink(width, height)
    limits.check((width, height), limits.max_pixels * (JPEG_FACTOR if times > 1 else 1))
    decoded = math.ceil(width / times) * math.ceil(height / times)
    if decoded > limits.max_pixels:
        limits.check((width, height))
    orientation = orientation_in(header.exif, header.xmp)
    with limits.grant(header.coefficient_bytes() + decoded * (4 if orientation == 1 else 8)):
        yield Picture(_decode_jpeg(header.slim(data), header, limits, times, orientation), "JPEG")


def _decode_jpeg(data: bytes, header: Jpeg, limits: Limits, times: int, orientation: int) -> Image.Image | np.ndarray:
    plain = decode_plain_jpeg(data) if times == 1 else None
    if plain is not None and plain.shape[:2] == (header.height, header.width):
        if orientation == 1:
            return plain
        image = Image.fromarray(plain[..., 0] if plain.shape[2] == 1 else plain)
    else:
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
        if image.size != (header.width, header.height):
            raise Unfit("the image is damaged: NAME (it has two sizes). Restore or remove it.", "truncated")
        if times > 1 and limits.draft_size is not None:
            image.draft(None, (2 * limits.draft_size, 2 * limits.draft_size))
        image.load()
    return _turned(image, orientation)


@contextlib.contextmanager
def _webp(data: bytes, limits: Limits) -> Iterator[Picture]:
    # its decoder makes the canvas as soon as a file is opened
    size = canvas_of_webp(data)
    if size is not None:
        limits.check(size)
        with limits.grant(size[0] * size[1] * NEEDED["WEBP"]):
            image = Image.open(io.BytesIO(data), formats=["WEBP"])
            limits.check(image.size)
            yield _picture(image, "WEBP")
        return
    raise Unfit("the image is damaged: NAME (its header is wrong). Restore or remove it.", "truncated")


@contextlib.contextmanager
def _png(data: bytes, limits: Limits) -> Iterator[Picture]:
    animated = b"acTL" in data[:4096]
    with _granted("PNG", slim_png(data), limits) as image:
        picture = _picture(image, "PNG", _reopened(slim_png(data), "PNG"))
        picture.notes += ("several_pictures",) * animated
        yield picture


@contextlib.contextmanager
def _gif(data: bytes, limits: Limits) -> Iterator[Picture]:
    check_gif(data)
    with _granted("GIF", data, limits) as image:
        picture = _picture(image, "GIF")
        picture.notes += ("several_pictures",) * (b"NETSCAPE2.0" in data[:8192])
        yield picture


@contextlib.contextmanager
def _bmp(data: bytes, limits: Limits) -> Iterator[Picture]:
    if len(data) > MAX_BMP_RUNS and data[30:34] in (b"\x01\0\0\0", b"\x02\0\0\0"):
        raise Unfit(f"NAME has over {MAX_BMP_RUNS:,} bytes of runs. Save it as PNG.")
    with _granted("BMP", data, limits) as image:
        yield _picture(image, "BMP")


def _check_avif(data: bytes) -> None:
    """Pillow copies every tag of its EXIF block, wherever that lies."""
    for mark in (b"II*\0", b"MM\0*"):
        place = data.find(mark)
        while place >= 0:
            read_tiff(data, place, inner=True)
            place = data.find(mark, place + 1)


@contextlib.contextmanager
def _avif(data: bytes, limits: Limits) -> Iterator[Picture]:
    _check_avif(data)
    with _granted("AVIF", data, limits) as image:
        yield _picture(image, "AVIF")


@contextlib.contextmanager
def _heif(data: bytes, limits: Limits) -> Iterator[Picture]:
    image = _heif_plugin()(io.BytesIO(data))
    limits.check(image.size)
    with limits.grant(image.width * image.height * NEEDED["HEIF"]):
        yield _picture(image, "HEIF")


def _heif_plugin() -> Any:
    # pi_heif cannot write, and so comes without the encoder whose licence is the GPL
    for name in ("pi_heif", "pillow_heif"):
        with contextlib.suppress(ImportError):
            return __import__(f"{name}.as_plugin", fromlist=["HeifImageFile"]).HeifImageFile
    raise Unfit(
        "NAME is HEIC, which needs pi-heif. Install it: pip install pi-heif (or 'vivace[heic]').", "missing_extra"
    )


@contextlib.contextmanager
def _tiff(data: bytes, limits: Limits) -> Iterator[Picture]:
    header = read_tiff(data)
    if 0xC612 in header.values:
        raise Unfit("the format is not allowed: NAME is a raw photo (DNG). Develop it to JPEG.", "format_not_allowed")
    extra = header.tile_bytes()
    try:
        with _granted("TIFF", data, limits, extra) as image:
            picture = _picture(image, "TIFF", _reopened(data, "TIFF"), _depth_of(header))
            samples = int(header.number(277, 1))
            picture.notes += ("several_pictures",) * header.more + ("channels_dropped",) * (samples > 4)
            yield picture
    except UnidentifiedImageError:
        samples, bits = int(header.number(277, 1)), int(header.number(258, 1))
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
def _granted(kind: str, data: bytes, limits: Limits, extra: float = 0) -> Iterator[Image.Image]:
    """A file opened by Pillow, and memory to decode and convert it."""
    image = Image.open(io.BytesIO(data), formats=[kind])
    limits.check(image.size)
    mode = image.mode
    each = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    # converted, or turned, there is a second one
    twice = mode not in ("1", "L", "RGB") or bool(_orientation_of(image) - 1)
    load = NEEDED.get(kind, each + (4 if kind in ("TIFF", "GIF") else 0))
    with limits.grant(image.width * image.height * max(load, each + 4 * twice) + extra):
        yield image


def _reopened(data: bytes, kind: str) -> Callable[[], Image.Image]:
    return lambda: Image.open(io.BytesIO(data), formats=[kind])


def _picture(
    image: Image.Image,
    kind: str,
    again: Callable[[], Image.Image] | None = None,
    depth: Depth = Depth(),  # noqa: B008 (it is frozen)
) -> Picture:
    """Decode an opened image; `again` opens it once more, for the lower half of 16 bits a channel."""
    raw = _raw_mode(image)
    several = getattr(image, "is_animated", False) if kind in ("WEBP", "AVIF") else False
    white = None
    if raw == GREY_ALPHA:
        _read_as(image, "RGBA")
    image.load()
    orientation = _orientation_of(image)
    if raw == GREY_ALPHA:
        image, white = _grey_alpha(image)
    elif raw in OTHER_BYTE and again is not None and _is_low(image, depth):
        lower = again()
        _read_as(lower, OTHER_BYTE[raw])
        lower.load()
        image, white = combined(image, lower, depth.white)
    elif image.mode.startswith("I") or image.mode == "F" or (depth.signed and image.mode == "L"):
        image, white = eight_bit(image, depth)
    notes = ("several_pictures",) * bool(several)
    return Picture(_turned(image, orientation), kind, notes, white if depth.white is None else None)


def _raw_mode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _read_as(image: Image.Image, raw: str) -> None:
    """Have the bytes of an image that is not decoded yet taken for another raw mode of as many bytes."""

    def changed(arguments: Any) -> Any:
        return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw

    image.tile = [tile._replace(args=changed(tile.args)) for tile in image.tile]  # type: ignore[attr-defined]


def _is_low(image: Image.Image, depth: Depth) -> bool:
    """Whether the high bytes alone leave few tones: 12 bits or fewer, or a depth that the file declares."""
    colours = image.getextrema()[:3]
    return depth.white not in (None, 65535) or max(top for _, top in colours) < 16  # type: ignore[misc]


def _grey_alpha(image: Image.Image) -> tuple[Image.Image, int]:
    """Grey and alpha of 16 bits, given as their four bytes."""
    upper, lower, alpha, alpha_low = image.split()
    return combined(Image.merge("LA", (upper, alpha)), Image.merge("LA", (lower, alpha_low)))


def _orientation_of(image: Image.Image) -> int:
    """1 to 8, by EXIF, else by XMP; a block too corrupt to tell counts as none."""
    if image.format == "TIFF":
        try:
            value = image.getexif().get(EXIF_ORIENTATION, 1)
        except Exception:
            # Pillow's EXIF parser raises whatever its byte reading meets: SyntaxError, struct.error, KeyError …
            return 1
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    info = image.info
    exif = info.get("exif", b"")
    if not exif and "Raw profile type exif" in info:
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(str(info["Raw profile type exif"]).split("\n")[3:]))
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
    xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
    return orientation_in(exif if isinstance(exif, bytes) else b"", xmp if isinstance(xmp, bytes) else b"")


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    method = UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


CHECKS: dict[str, Callable[[bytes], object]] = {"GIF": check_gif, "TIFF": read_tiff, "AVIF": _check_avif}
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
