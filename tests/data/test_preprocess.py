"""The same image gives the same pixels, however it is stored and whoever asks."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image, ImageOps

from vivace.config import from_dict
from vivace.data.caching.cache import open_cache
from vivace.data.decoding.decode import PillowGuard
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import ConfigError, ImageError

PLAIN = Preprocess(size=24, store_size=28)


def gradient(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    """An image that every flip and rotation changes."""
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


def floating() -> Image.Image:
    values = np.linspace(-50, 300, 1200, dtype=np.float32).reshape(30, 40)
    values[3, 4] = np.nan
    return Image.fromarray(values)


def exif_tags(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def exif(orientation: int) -> bytes:
    return exif_tags(orientation).tobytes()


def half_corrupt_exif() -> bytes:
    """The orientation is readable, but the maker's name before it extends beyond the end of the block."""
    tags = exif_tags(6)
    tags[0x010F] = "x" * 100
    return tags.tobytes()[:60]


KINDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "other": ("png", lambda: encoded(gradient().rotate(180), "PNG")),
    "other-one": ("png", lambda: encoded(gradient().rotate(90), "PNG")),
    "jpeg": ("jpg", lambda: encoded(gradient(), "JPEG")),
    "grey": ("jpg", lambda: encoded(gradient("L"), "JPEG")),
    "cmyk": ("jpg", lambda: encoded(gradient("CMYK"), "JPEG")),
    "palette": ("png", lambda: encoded(gradient("P"), "PNG")),
    "palette-transparent": ("png", lambda: encoded(gradient("P"), "PNG", transparency=3)),
    "palette-alpha": ("png", lambda: encoded(gradient("P"), "PNG", transparency=bytes(range(256)))),
    "colour-key": ("png", lambda: encoded(gradient(), "PNG", transparency=(0, 0, 0))),
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
    "half-corrupt-exif": ("jpg", lambda: encoded(gradient(), "JPEG", exif=half_corrupt_exif())),
    "turned-tiff": ("tif", lambda: encoded(gradient(), "TIFF", exif=exif_tags(6))),
    "16-bit-tiff": ("tif", lambda: encoded(sixteen_bit(), "TIFF")),
    "float-tiff": ("tif", lambda: encoded(floating(), "TIFF")),
    "stored-height": ("png", lambda: encoded(gradient(size=(41, 28)), "PNG")),
    "small": ("png", lambda: encoded(gradient(size=(9, 7)), "PNG")),
    "large": ("jpg", lambda: encoded(gradient(size=(400, 300)), "JPEG")),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_cached_pixels_equal_predicted_pixels_for_every_kind_of_image(tmp_path: Path, fit: str, channels: int) -> None:
    for name, (extension, make) in KINDS.items():
        # equal pictures are put into one class, because two would be a contradiction
        folder = tmp_path / "data" / ("b" if name.startswith("other") else "a")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.{extension}").write_bytes(make())
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
    assert len(split.names) == len(KINDS)
    for name, stored in zip(split.names, split.images_NHWC, strict=True):
        expected = preprocess.load(tmp_path / "data" / name)
        assert expected.shape == (24, 24, channels)
        np.testing.assert_array_equal(preprocess.view(stored), expected, err_msg=name)


def test_a_turned_image_is_set_upright() -> None:
    upright, turned = gradient(), gradient().transpose(Image.Transpose.ROTATE_90)
    # orientation 6: the camera was turned; a viewer turns the stored picture clockwise
    turned_bytes = encoded(turned, "PNG", exif=exif(6))
    np.testing.assert_array_equal(PLAIN.load(turned_bytes), PLAIN.load(encoded(upright, "PNG")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_are_set_upright(orientation: int, kind: str) -> None:
    stored = gradient()
    stored.getexif()[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(gradient(), kind, exif=exif_tags(orientation), **options)
    np.testing.assert_array_equal(PLAIN.load(data), PLAIN.load(ImageOps.exif_transpose(stored)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("filters", ["ignore", "error"])
def test_the_orientation_counts_where_another_tag_is_corrupt_whatever_becomes_of_warnings(
    filters: str, kind: str
) -> None:
    expected = PLAIN.load(encoded(gradient(), kind, exif=exif(6)))
    with warnings.catch_warnings():
        warnings.simplefilter(filters)  # type: ignore[arg-type]
        np.testing.assert_array_equal(PLAIN.load(encoded(gradient(), kind, exif=half_corrupt_exif())), expected)


def test_an_image_that_was_only_opened_gives_what_its_bytes_give() -> None:
    for name, (_, make) in KINDS.items():
        # a large JPEG is decoded at a lower resolution from its bytes
        if name != "large":
            with PillowGuard():
                opened = Image.open(io.BytesIO(make()))
            np.testing.assert_array_equal(PLAIN.load(opened), PLAIN.load(make()), err_msg=name)
    half = encoded(gradient(), "PNG")
    with pytest.raises(ImageError, match="the image is damaged: the image") as error:
        PLAIN.load(Image.open(io.BytesIO(half[: len(half) // 2])))
    assert error.value.problem == "truncated"


@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_pillow_can_be_converted(channels: Literal[1, 3]) -> None:
    preprocess = Preprocess(size=8, store_size=8, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    for mode in (*Image.MODES, "I;16", "I;16B", "RGBX", "La"):
        assert preprocess.load(Image.new(mode, (10, 9))).shape == (8, 8, channels), mode


def test_colours_that_cant_be_converted_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("conversion from LAB to RGB not supported")

    Image.new("LAB", (40, 30)).save(tmp_path / "lab.tif")
    # as in a Pillow that was built without colour management
    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(ImageError, match=r"can't be converted: .*lab\.tif is LAB .* Save it as RGB") as error:
        PLAIN.load(tmp_path / "lab.tif")
    assert error.value.problem == "not_convertible"


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.full((9, 9, 3), 255, np.float32), "not_an_image"),
        (np.full((9, 9, 3), np.nan, np.float32), "not_an_image"),
        (np.full((9, 9, 3), -0.01, np.float64), "not_an_image"),
        (np.zeros((9, 9, 3), np.int64), "not_an_image"),
        (np.zeros((9, 9, 3), object), "not_an_image"),
        (np.zeros((9, 9, 5), np.uint8), "not_an_image"),
        (np.zeros((3, 9, 9), np.uint8), "not_an_image"),
        (np.zeros((2, 9, 9, 3), np.uint8), "not_an_image"),
        (np.zeros(9, np.uint8), "not_an_image"),
        (np.zeros((0, 9, 3), np.uint8), "empty"),
    ],
)
def test_arrays_that_are_no_images_are_reported(array: np.ndarray, problem: str) -> None:
    with pytest.raises(ImageError, match="the array is") as error:
        PLAIN.load(array)
    assert error.value.problem == problem


def test_a_cmyk_photo_looks_like_its_rgb_original() -> None:
    red = Image.new("RGB", (40, 30), (220, 30, 40))
    pixels = PLAIN.load(encoded(red.convert("CMYK"), "JPEG", quality=95)).astype(int)
    assert np.abs(pixels - [220, 30, 40]).max() < 25


def test_nan_is_black_and_one_bit_is_black_or_white() -> None:
    values = np.full((30, 40), 300, np.float32)
    assert (PLAIN.load(encoded(Image.fromarray(values * np.nan), "TIFF")) == 0).all()
    assert (PLAIN.load(encoded(Image.new("1", (40, 30), 1), "PNG")) == 255).all()


@pytest.mark.parametrize("block", [b"II*\0\xff\xff\xff\xff garbage", b"no TIFF header", b"MM\0", b""])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_corrupt_exif_block_counts_as_none(kind: str, block: bytes) -> None:
    bad = encoded(gradient(), kind, exif=b"Exif\0\0" + block)
    np.testing.assert_array_equal(PLAIN.load(bad), PLAIN.load(encoded(gradient(), kind)))


def test_transparency_is_composited_on_white() -> None:
    clear = Image.new("RGBA", (40, 30), (200, 0, 0, 0))
    assert (PLAIN.load(encoded(clear, "PNG")) == 255).all()
    red = Image.new("RGB", (40, 30), (200, 0, 0))
    assert (PLAIN.load(encoded(red, "PNG", transparency=(200, 0, 0))) == 255).all()
    assert (PLAIN.load(encoded(red.convert("P"), "PNG", transparency=bytes(256))) == 255).all()
    assert (PLAIN.load(encoded(red.convert("L"), "PNG", transparency=red.convert("L").getpixel((0, 0)))) == 255).all()


def test_sixteen_bits_are_divided_by_256() -> None:
    flat = Image.fromarray(np.full((30, 40), 0x8040, dtype=np.uint16))
    assert (PLAIN.load(encoded(flat, "PNG")) == 0x80).all()


def test_an_image_of_the_stored_size_is_not_resampled() -> None:
    image = gradient(size=(28, 28))
    np.testing.assert_array_equal(PLAIN.store(image), np.asarray(image))


def test_a_square_of_the_stored_size_is_cropped_and_not_resampled() -> None:
    image = gradient(size=(41, 28))
    np.testing.assert_array_equal(PLAIN.store(image), np.asarray(image)[:, 6:34])


def test_the_view_is_the_centre_of_the_stored_pixels() -> None:
    stored = PLAIN.store(gradient())
    batch = np.stack([stored, 255 - stored])
    np.testing.assert_array_equal(PLAIN.view(batch), batch[:, 2:26, 2:26])
    np.testing.assert_array_equal(PLAIN.load(gradient()), PLAIN.view(stored))


def test_a_crop_shows_the_middle_and_a_squash_shows_all() -> None:
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, 30:60] = 255
    cropped = Preprocess(size=28, store_size=28).load(pixels)
    squashed = Preprocess(size=28, store_size=28, fit="squash").load(pixels)
    # the filter extends a little beyond the edge of the box
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


def test_preprocess_survives_json_and_is_read_strictly() -> None:
    assert Preprocess.from_dict(PLAIN.to_dict()) == PLAIN
    with pytest.raises(ConfigError, match=r"unknown key 'preprocess\.sise'"):
        Preprocess.from_dict({**PLAIN.to_dict(), "sise": 3})
    with pytest.raises(ConfigError, match="need 3 values: got 1 and 3"):
        Preprocess(size=8, store_size=8, mean=(0.5,))
    with pytest.raises(ConfigError, match="must be positive"):
        Preprocess(size=8, store_size=8, std=(0.5, 0.0, 0.5))
