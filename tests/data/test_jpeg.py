"""The fast path for ordinary JPEGs gives exactly Pillow's pixels, and leaves everything else to Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from vivace.data.decoding.decode import image_of, read_image
from vivace.data.decoding.jpeg import decode_plain_jpeg
from vivace.errors import ImageError


def picture(mode: str = "RGB", size: tuple[int, int] = (61, 47)) -> Image.Image:
    """A smooth picture with noise and edges."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    noise = np.random.default_rng(0).integers(0, 60, (size[1], size[0], 4))
    waves = np.stack([columns * 3, rows * 4, columns + rows, 40 * (columns // 9 % 2)], axis=-1) % 196
    return Image.fromarray((waves + noise).astype(np.uint8)[..., :3]).convert(mode)


def opened(source: Path | bytes, **options: Any) -> Image.Image:
    decoded = read_image(source, **options)
    return image_of(decoded) if isinstance(decoded, np.ndarray) else decoded


def encoded(mode: str = "RGB", size: tuple[int, int] = (61, 47), **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture(mode, size).save(buffer, options.pop("format", "JPEG"), **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def plain(data: bytes) -> np.ndarray | None:
    return decode_plain_jpeg(data)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(61, 47), (8, 8), (1, 1), (16, 33), (200, 150)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 75},
        {"quality": 10},
        {"quality": 100, "subsampling": 0},
        {"subsampling": 1},
        {"progressive": True},
        {"optimize": True, "restart_marker_blocks": 2},
    ],
    ids=str,
)
def test_the_pixels_are_those_of_pillow(mode: str, size: tuple[int, int], options: dict[str, Any]) -> None:
    data = encoded(mode, size, **options)
    pixels = plain(data)
    assert pixels is not None
    assert pixels.shape == (size[1], size[0], 3 if mode == "RGB" else 1)
    expected = np.asarray(by_pillow(data))
    assert np.array_equal(pixels.reshape(expected.shape), expected)
    if min(size) >= 4:
        image = opened(data)
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), expected)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(
    "data",
    [
        encoded("CMYK"),
        encoded(keep_rgb=True),
        encoded(format="PNG"),
    ],
    ids=["cmyk", "rgb inside", "png"],
)
def test_what_is_no_plain_jpeg_is_left_to_pillow(data: bytes) -> None:
    assert plain(data) is None
    image = opened(data)
    assert image.mode == by_pillow(data).mode
    assert np.array_equal(np.asarray(image), np.asarray(by_pillow(data)))


@pytest.mark.parametrize("orientation", range(9))
def test_a_jpeg_stands_as_pillow_sets_it_whatever_its_size(orientation: int) -> None:
    for size in ((61, 47), (400, 300)):
        data = encoded(size=size, exif=exif(orientation))
        expected = np.asarray(ImageOps.exif_transpose(by_pillow(data)))
        assert np.array_equal(np.asarray(opened(data)), expected)
        large = opened(data, draft_size=40)
        assert large.size == (expected.shape[1], expected.shape[0]) if size == (61, 47) else (100, 80)


def test_the_first_of_several_pictures_is_decoded() -> None:
    data = encoded(format="MPO", save_all=True, append_images=[Image.new("RGB", (61, 47))])
    assert np.array_equal(np.asarray(opened(data)), np.asarray(by_pillow(data)))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 20, 200, 600, 1500])
def test_a_truncated_jpeg_is_left_to_pillow_whose_word_counts(length: int) -> None:
    whole = encoded(quality=95)
    assert len(whole) > 2000
    data = whole[:length]
    assert plain(data) is None
    with pytest.raises(ImageError):
        opened(data)


def test_every_truncated_or_changed_byte_is_judged_as_pillow_judges_it() -> None:
    data = encoded(size=(24, 16), quality=60)
    for position in range(0, len(data), 3):
        for damaged in (data[:position], data[:position] + bytes([data[position] ^ 0x15]) + data[position + 1 :]):
            pixels = plain(damaged)
            if pixels is not None:
                expected = np.asarray(by_pillow(damaged))
                assert np.array_equal(pixels.reshape(expected.shape), expected)


def test_the_size_is_judged_before_a_pixel_is_decoded() -> None:
    data = encoded(size=(40, 30))
    with pytest.raises(ImageError, match="too many pixels: the image is 40 × 30, the limit is 1,000"):
        opened(data, max_pixels=1000)


@pytest.mark.real
@pytest.mark.parametrize(("name", "every"), [("cifar10", 97), ("flowers", 13)])
def test_the_pixels_of_real_data_are_those_of_pillow(real_data: Path, name: str, every: int) -> None:
    files = sorted((real_data / name).rglob("*.jpg"))[::every]
    assert len(files) > 200
    short = 0
    for path in files:
        image = plain(path.read_bytes())
        short += image is not None
        assert np.array_equal(np.asarray(opened(path)), np.asarray(by_pillow(path.read_bytes())))
    assert short > 0.9 * len(files)
