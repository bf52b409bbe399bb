"""The orientation of a photo depends on its metadata only, not on its size, format or decoder."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from vivace.data.decoding.decode import image_of, read_image
from vivace.data.decoding.headers import orientation_in
from vivace.data.preprocess import Preprocess
from vivace.errors import ImageError

# 48 x 32 px, red on the left and blue on the right, to be turned clockwise (irot)
HEIC = base64.b64decode(
    """
    AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAA
    AAAERAAAIAAQAAAAAB7AABAAAAAAAAACkAAgAAAAACFQABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVp
    bmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGE
    ABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkA
    AAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAADAAAAABAAAAIAAAAAH////wAAAAAv///+AAAAACAAAAEH
    BpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAFVtZGF0AAAA
    JSgBrxOA5TH3/7f5P9+jP8kZLBLP7oD7qxL+iQ7+EsPrKKPac/AAAAAGRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA=
    """
)


def gradient(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """An image that every flip and rotation changes."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([x * 255 / size[0], y * 255 / size[1], (x + y) * 255 / sum(size)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def tags(orientation: int, order: str = ">") -> bytes:
    exif = Image.Exif()
    exif.endian = order
    exif[0x0112] = orientation
    return exif.tobytes()


def xmp(orientation: int, attribute: bool = True) -> bytes:
    text = f'tiff:Orientation="{orientation}"' if attribute else f"><tiff:Orientation>{orientation}</tiff:Orientation"
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {text}/></x:xmpmeta>'.encode()


def saved(kind: str, orientation: int, source: str, size: tuple[int, int]) -> bytes:
    options: dict[str, object] = {}
    if source == "exif":
        options["exif"] = tags(orientation)
    elif kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
        options["pnginfo"] = info
    elif kind == "TIFF":
        options["tiffinfo"] = {700: xmp(orientation)}
    else:
        options["xmp"] = xmp(orientation, attribute=source == "xmp")
    if kind == "WEBP":
        options["lossless"] = True
    buffer = io.BytesIO()
    gradient(size).save(buffer, kind, **options)
    return buffer.getvalue()


def shown_by_pillow(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.load()
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def shown(data: bytes, **options: int) -> np.ndarray:
    found = read_image(data, **options)
    image = image_of(found) if isinstance(found, np.ndarray) else found
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("source", ["exif", "xmp", "xmp element"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_source_of_orientation_is_honoured_as_pillow_does(kind: str, source: str, orientation: int) -> None:
    if kind == "AVIF" and source != "exif":
        pytest.skip("Pillow writes the orientation of AVIF as irot and imir")
    data = saved(kind, orientation, source, (60, 40))
    np.testing.assert_array_equal(shown(data), shown_by_pillow(data))
    assert shown(data).shape[:2] == ((40, 60) if orientation < 5 else (60, 40))


@pytest.mark.parametrize("source", ["exif", "xmp"])
@pytest.mark.parametrize("size", [(60, 40), (480, 320)])
def test_the_fast_path_and_the_reduced_one_turn_alike(source: str, size: tuple[int, int]) -> None:
    preprocess = Preprocess(size=16, store_size=16, fit="squash")
    for orientation in range(1, 9):
        data = saved("JPEG", orientation, source, size)
        expected = preprocess.store(Image.fromarray(shown_by_pillow(data))).astype(int)
        assert np.abs(preprocess.load(data) - expected).max() <= 12


def test_exif_goes_before_xmp_and_a_corrupt_block_counts_as_none() -> None:
    assert orientation_in(tags(6), xmp(3)) == 6
    assert orientation_in(b"Exif\0\0" + tags(8, "<"), b"") == 8
    assert orientation_in(b"", xmp(3)) == 3
    for block in (b"", b"Exif\0\0", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"garbage"):
        assert orientation_in(block, b"") == 1
        assert orientation_in(block, xmp(5)) == 5
    for value in (0, 9, 300):
        assert orientation_in(tags(value), b"") == 1


def test_an_exif_block_that_continues_in_another_segment_is_read() -> None:
    buffer = io.BytesIO()
    gradient().save(buffer, "JPEG")
    data, block = buffer.getvalue(), tags(6).removeprefix(b"Exif\0\0")
    parts = (b"Exif\0\0" + part for part in (block[:14], block[14:]))
    segments = b"".join(b"\xff\xe1" + (len(part) + 2).to_bytes(2, "big") + part for part in parts)
    turned = data[:2] + segments + data[2:]
    np.testing.assert_array_equal(shown(turned), shown_by_pillow(turned))
    assert shown(turned).shape[:2] == (60, 40)


def test_heic_is_read_and_turned() -> None:
    pytest.importorskip("pillow_heif")
    pixels = shown(HEIC)
    assert pixels.shape == (48, 32, 3)
    assert pixels[4, 4, 0] > 180 > 60 > pixels[4, 4, 2]
    assert pixels[-4, -4, 2] > 180 > 60 > pixels[-4, -4, 0]
    stored = Preprocess(size=16, store_size=16).load(HEIC)
    assert stored.shape == (16, 16, 3)


def test_without_its_library_heic_is_reported_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("pillow_heif", "pillow_heif.as_plugin"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(
        ImageError, match=r"a\.heic is HEIC, which needs pillow-heif\. Install it: pip install"
    ) as error:
        read_image(tmp_path / "a.heic")
    assert error.value.problem == "missing_extra"
