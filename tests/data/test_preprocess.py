"""The same image gives the same pixels, whatever it is stored as and whoever asks."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivace.config import from_dict
from vivace.data.cache import open_cache
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import ConfigError

PLAIN = Preprocess(size=24, store_size=28)


def gradient(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    """An image that no flip or turn leaves as it is."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], -1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgba() -> Image.Image:
    image = gradient().convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))))
    return image


def sixteen_bit() -> Image.Image:
    return Image.fromarray((np.mgrid[0:30, 0:40][1] * 1600).astype(np.uint16))


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


KINDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jpeg": ("jpg", lambda: encoded(gradient(), "JPEG")),
    "grey": ("jpg", lambda: encoded(gradient("L"), "JPEG")),
    "cmyk": ("jpg", lambda: encoded(gradient("CMYK"), "JPEG")),
    "palette": ("png", lambda: encoded(gradient("P"), "PNG")),
    "palette-transparent": ("png", lambda: encoded(gradient("P"), "PNG", transparency=3)),
    "alpha": ("png", lambda: encoded(rgba(), "PNG")),
    "grey-alpha": ("png", lambda: encoded(rgba().convert("LA"), "PNG")),
    "16-bit": ("png", lambda: encoded(sixteen_bit(), "PNG")),
    "1-bit": ("png", lambda: encoded(gradient("1"), "PNG")),
    "webp": ("webp", lambda: encoded(gradient(), "WEBP", lossless=True)),
    "gif": ("gif", lambda: encoded(gradient(), "GIF")),
    "bmp": ("bmp", lambda: encoded(gradient(), "BMP")),
    "tiff": ("tif", lambda: encoded(gradient(), "TIFF")),
    "ppm": ("ppm", lambda: encoded(gradient(), "PPM")),
    "turned": ("jpg", lambda: encoded(gradient(), "JPEG", exif=exif(6))),
    "corrupt-exif": ("jpg", lambda: encoded(gradient(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")),
    "large": ("jpg", lambda: encoded(gradient(size=(400, 300)), "JPEG")),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_cached_pixels_equal_predicted_pixels_for_every_kind_of_image(tmp_path: Path, fit: str, channels: int) -> None:
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for name, (extension, make) in KINDS.items():
            # two classes need two different files, or the audit calls them a contradiction
            data = make() + (b"" if label == "a" else b"\0")
            (tmp_path / "data" / label / f"{name}.{extension}").write_bytes(data)
    preprocess = from_dict(
        Preprocess,
        {
            "size": 24,
            "store_size": 28,
            "channels": channels,
            "fit": fit,
            "mean": [0.5] * channels,
            "std": [0.2] * channels,
        },
    )
    cache = open_cache(open_source(tmp_path / "data"), preprocess, cache_dir=tmp_path / "cache")
    split = cache.splits["train"]
    assert len(split.names) == 2 * len(KINDS)
    for name, stored in zip(split.names, split.images_NHWC, strict=True):
        expected = preprocess.load(tmp_path / "data" / name)
        assert expected.shape == (24, 24, channels)
        np.testing.assert_array_equal(preprocess.view(stored), expected, err_msg=name)


def test_a_turned_image_is_set_upright() -> None:
    upright, turned = gradient(), gradient().transpose(Image.Transpose.ROTATE_90)
    # orientation 6: the camera was turned; a viewer turns the stored picture clockwise
    turned_bytes = encoded(turned, "PNG", exif=exif(6))
    np.testing.assert_array_equal(PLAIN.load(turned_bytes), PLAIN.load(encoded(upright, "PNG")))


def test_a_corrupt_exif_block_counts_as_none() -> None:
    bad = encoded(gradient(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage", quality=90)
    np.testing.assert_array_equal(PLAIN.load(bad), PLAIN.load(encoded(gradient(), "JPEG", quality=90)))


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (40, 30), (200, 0, 0, 0))
    assert (PLAIN.load(encoded(clear, "PNG")) == 255).all()


def test_sixteen_bits_are_divided_by_256() -> None:
    flat = Image.fromarray(np.full((30, 40), 0x8040, dtype=np.uint16))
    assert (PLAIN.load(encoded(flat, "PNG")) == 0x80).all()


def test_an_image_of_the_stored_size_is_not_touched() -> None:
    image = gradient(size=(28, 28))
    np.testing.assert_array_equal(PLAIN.store(image), np.asarray(image))


def test_a_crop_shows_the_middle_and_a_squash_shows_all() -> None:
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, 30:60] = 255
    cropped = Preprocess(size=28, store_size=28).load(pixels)
    squashed = Preprocess(size=28, store_size=28, fit="squash").load(pixels)
    # the filter reaches a little over the edge of the box
    assert cropped.min() > 245
    assert squashed[:, 0].max() == 0


def test_paths_bytes_images_and_arrays_give_the_same(tmp_path: Path) -> None:
    data = encoded(gradient(), "PNG")
    (tmp_path / "x.png").write_bytes(data)
    expected = PLAIN.load(data)
    for source in (tmp_path / "x.png", str(tmp_path / "x.png"), gradient(), np.asarray(gradient())):
        np.testing.assert_array_equal(PLAIN.load(source), expected)


def test_a_large_jpeg_decoded_at_lower_resolution_stays_close_to_the_full_one() -> None:
    image = gradient(size=(800, 600))
    reduced = PLAIN.load(encoded(image, "JPEG", quality=95)).astype(int)
    full = PLAIN.view(PLAIN.store(image)).astype(int)
    assert np.abs(reduced - full).mean() < 2


def test_the_fingerprint_follows_what_changes_stored_pixels_and_nothing_else() -> None:
    assert dataclasses.replace(PLAIN, mean=(0.1, 0.2, 0.3)).fingerprint() == PLAIN.fingerprint()
    for change in ({"store_size": 30}, {"fit": "squash"}, {"interpolation": "bilinear"}):
        assert dataclasses.replace(PLAIN, **change).fingerprint() != PLAIN.fingerprint()  # type: ignore[arg-type]


def test_it_goes_to_json_and_back_strictly() -> None:
    assert Preprocess.from_dict(PLAIN.to_dict()) == PLAIN
    with pytest.raises(ConfigError, match=r"unknown key 'preprocess\.sise'"):
        Preprocess.from_dict({**PLAIN.to_dict(), "sise": 3})
    with pytest.raises(ConfigError, match="need 3 values: got 1 and 3"):
        Preprocess(size=8, store_size=8, mean=(0.5,))
    with pytest.raises(ConfigError, match="must be positive"):
        Preprocess(size=8, store_size=8, std=(0.5, 0.0, 0.5))
