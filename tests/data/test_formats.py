"""A file's format is detected by its first bytes, whatever its name."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vivace.data.decoding.decode import decode_bytes
from vivace.data.decoding.formats import FORMATS, HEAD_BYTES, sniff, unsupported_format
from vivace.errors import ImageError


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("MPO", "HEIF")])
def test_what_pillow_writes_is_known_by_its_first_bytes(kind: str) -> None:
    assert sniff(encoded(kind)[:HEAD_BYTES]) == kind


def test_pictures_in_one_file_are_a_jpeg() -> None:
    assert sniff(encoded("MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))])) == "JPEG"


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + major + b"\0\0\0\0" + b"".join(compatible)
    return (len(body) + 4).to_bytes(4, "big") + body + b"\0\0\0\x08free"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (ftyp(b"heic", b"mif1", b"heic"), "HEIF"),
        (ftyp(b"heix", b"mif1"), "HEIF"),
        (ftyp(b"mif1", b"mif1", b"heic"), "HEIF"),
        (ftyp(b"msf1", b"mif1", b"hevc"), "HEIF"),
        (ftyp(b"mif1", b"miaf", b"avif"), "AVIF"),
        (ftyp(b"avis", b"msf1"), "AVIF"),
        (ftyp(b"isom", b"mp41"), None),
        (ftyp(b"crx ", b"isom"), None),
        (b"MM\0+\0\x08\0\0", "TIFF"),
        (b"II*\0\x10\0\0\0CR\x02\0", None),
        (b"P5 3 3 255\n", "PPM"),
        (b"P5", None),
        (b"P7\nWIDTH 3\n", None),
        (b"PK\x03\x04", None),
        (b"BMW is a maker of cars, and this is text", None),
        (b"%PDF-1.7", None),
        (b"%!PS-Adobe", None),
        (b"<svg xmlns=", None),
        (b"", None),
        (b"\0" * 64, None),
    ],
)
def test_an_image_is_recognized_by_its_first_bytes(head: bytes, kind: str | None) -> None:
    assert sniff(head) == kind


def test_every_beginning_of_a_file_is_judged() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"):
        data = encoded(kind)
        assert {sniff(data[:length]) for length in range(HEAD_BYTES)} <= {None, kind}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("JPEG2000", "JPEG 2000"), ("TGA", "TGA"), ("PCX", "PCX"), ("ICO", "ICO"), ("ICNS", "ICNS"), ("DDS", "DDS"),
     ("SGI", "SGI")],
)  # fmt: skip
def test_a_whole_image_of_a_format_that_is_not_read_is_called_so(kind: str, name: str) -> None:
    data = encoded(kind)
    assert sniff(data[:HEAD_BYTES]) is None
    with pytest.raises(ImageError) as error:
        decode_bytes(data, "a.jpg")
    assert str(error.value) == f"the image format is not supported ({name}): a.jpg. Save it as PNG."
    assert error.value.problem == "format_not_allowed"


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("compression", [None, "tga_rle"])
def test_every_kind_of_tga_is_known(mode: str, compression: str | None) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 8, 7)).convert(mode).save(buffer, "TGA", compression=compression)
    assert unsupported_format(buffer.getvalue()[:HEAD_BYTES]) == "TGA"


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"P7\nWIDTH 3\n", "PAM"),
        (ftyp(b"crx ", b"isom"), "a raw photo"),
        (ftyp(b"isom", b"mp41"), None),
        (b"PK\x03\x04" + bytes(60), None),
        (b"file_name,label\n0.jpg,a\n" * 3, None),
        (bytes(64), None),
        (b"\0\0\1\0" + bytes(60), None),
        (b"", None),
    ],
)
def test_what_is_not_an_image_has_no_format(head: bytes, name: str | None) -> None:
    assert unsupported_format(head) == name


def test_noise_and_text_are_not_tga() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20_000, HEAD_BYTES), dtype=np.uint8)
    assert sum(unsupported_format(row.tobytes()) is not None for row in noise) < 5
