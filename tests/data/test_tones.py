"""More than 8 bits are reduced to 8 by one rule for all formats."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from vivace.data.decoding.decode import decoding, read_image
from vivace.data.decoding.tones import range_of
from vivace.data.preprocess import Preprocess
from vivace.errors import ImageError


def tiff(values: np.ndarray, tags: dict[int, Any] | None = None, **options: Any) -> bytes:
    info = ImageFileDirectory_v2()
    for tag, value in (tags or {}).items():
        info[tag] = value
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", tiffinfo=info, **options)
    return buffer.getvalue()


def tones(data: bytes) -> np.ndarray:
    return np.asarray(read_image(data)).astype(int)


RAMP = np.arange(256).repeat(4).reshape(32, 32)


@pytest.mark.parametrize(
    ("low", "high", "white", "expected"),
    [
        (0, 0, None, (0, 1)),
        (0, 1, None, (0, 1)),
        (0, 2, None, (0, 15)),
        (0, 255, None, (0, 255)),
        (0, 256, None, (0, 4095)),
        (0, 4095, None, (0, 4095)),
        (0, 4096, None, (0, 65535)),
        (0, 2**32 - 1, None, (0, 2**32 - 1)),
        (0, 1e20, None, (0, 2**32 - 1)),
        (-1000, 3000, None, (-4095, 4095)),
        (-1, 0, None, (-1, 1)),
        (0, 700, 1023, (0, 1023)),
        (0, 1024, 1023, (0, 4095)),
        (0, 100, 65535, (0, 65535)),
    ],
)
def test_white_is_declared_or_a_step_of_sixteen(
    low: float, high: float, white: int | None, expected: tuple[int, int]
) -> None:
    assert range_of(low, high, white) == expected


def test_floats_may_overshoot_by_a_tenth() -> None:
    assert range_of(-0.09, 1.09, slack=0.1) == (0, 1)
    assert range_of(-0.2, 1.0, slack=0.1) == (-1, 1)
    assert range_of(0.0, 1.2, slack=0.1) == (0, 15)
    assert range_of(-2.1, 2.6, slack=0.1) == (-15, 15)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_all_depths_fill_the_scale(compression: str) -> None:
    options = {"compression": compression}
    for data in (
        tiff((RAMP / 255).astype(np.float32), **options),
        tiff(RAMP.astype(np.float32), **options),
        tiff(RAMP.astype(np.uint16) * 16, **options),
        tiff(RAMP.astype(np.uint16) * 257, **options),
        tiff(RAMP.astype(np.uint16), **options),
        tiff(RAMP.astype(np.int32) << 16, **options),
    ):
        np.testing.assert_array_equal(tones(data), RAMP)


def test_what_a_file_declares_goes_before_its_values() -> None:
    values = RAMP.astype(np.uint16)
    assert tones(tiff(values * 2, {281: 1023})).max() == 510 // 4
    assert tones(tiff(values * 2, {281: 65535})).max() == 510 // 256
    assert tones(tiff((RAMP / 510).astype(np.float32), {341: 1.0})).max() == 128
    # the brightest value of an image does not declare a depth
    np.testing.assert_array_equal(tones(tiff(values * 16, {281: 4000})), RAMP)


def test_nan_infinity_and_no_data_are_black() -> None:
    values = (RAMP / 255).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -3.4e38
    values[1, 0] = -9999
    found = tones(tiff(values, {42113: "-9999"}))
    assert (found[0, :3] == 0).all()
    assert found[1, 0] == 0
    np.testing.assert_array_equal(found[2:], RAMP[2:])
    assert (tones(tiff(np.full((8, 8), np.nan, np.float32))) == 0).all()


def test_negative_values_lie_as_far_below_zero_as_white_above() -> None:
    values = np.linspace(-1000, 3000, 1024).astype(np.int32).reshape(32, 32)
    found = tones(tiff(values))
    assert (found[0, 0], found[-1, -1]) == ((4096 - 1000) * 128 // 4096, (4096 + 3000) * 128 // 4096)
    assert len(np.unique(found)) > 100
    floats = tones(tiff(np.linspace(-1, 1, 1024).astype(np.float32).reshape(32, 32)))
    assert (floats.min(), floats.max()) == (0, 255)


def test_unsigned_integers_of_32_bits_do_not_wrap() -> None:
    values = RAMP.astype(np.int64) << 24
    signed, unsigned = b"\x53\x01\x03\0\x01\0\0\0\x02\0", b"\x53\x01\x03\0\x01\0\0\0\x01\0"
    data = tiff(values.astype(np.uint32).view(np.int32))
    assert signed in data
    data = data.replace(signed, unsigned)
    np.testing.assert_array_equal(tones(data), RAMP)


def test_white_is_zero_inverts_the_image() -> None:
    values = RAMP.astype(np.uint16) * 16
    np.testing.assert_array_equal(tones(tiff(values, {262: 0})), 255 - RAMP)


def colours_of_16_bits(values: np.ndarray, kind: str) -> bytes:
    """A file of uint16 [H, W, 3 | 4]: an 8-bit file of twice the width with a changed header, as Pillow writes none."""
    import struct
    import zlib

    height, width, channels = values.shape
    if kind == "PNG":

        def chunk(name: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

        header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts
    order, raw = ("<", values.astype("<u2").tobytes()) if kind == "TIFF" else (">", values.astype(">u2").tobytes())
    entries = [(256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 200)]
    entries += [(277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(raw)), (258, 3, channels, 180)]
    entries += [(338, 3, 1, 2)] if channels == 4 else []
    body = struct.pack(order + "H", len(entries))
    for tag, type_, count, value in sorted(entries):
        # a short value stands in the first half of its field
        field = struct.pack(order + "HH", value, 0) if type_ == 3 and count == 1 else struct.pack(order + "I", value)
        body += struct.pack(order + "HHI", tag, type_, count) + field
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + body + b"\0\0\0\0"
    return head.ljust(180, b"\0") + struct.pack(order + "4H", 16, 16, 16, 16).ljust(20, b"\0") + raw


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF, big-endian"])
@pytest.mark.parametrize("channels", [3, 4])
def test_12_bits_in_the_16_of_each_colour_fill_the_scale(kind: str, channels: int) -> None:
    values = np.stack([RAMP, RAMP.T, 255 - RAMP, np.full_like(RAMP, 255)][:channels], -1).astype(np.uint16)
    for scale in (16, 256):
        found = np.asarray(read_image(colours_of_16_bits(values * scale + 3, kind)))
        np.testing.assert_array_equal(found[..., :3], values[..., :3])


def test_grey_and_alpha_of_16_bits() -> None:
    values = np.stack([RAMP * 16, np.full_like(RAMP, 65535)], -1).astype(np.uint16)
    found = read_image(colours_of_16_bits(values, "PNG"))
    assert isinstance(found, Image.Image)
    assert found.mode == "LA"
    np.testing.assert_array_equal(np.asarray(found)[..., 0], RAMP)
    assert (np.asarray(found)[..., 1] == 255).all()


@pytest.mark.parametrize("high", [100, 255, 1000, 4095, 65535])
def test_the_highest_value_of_a_pgm_is_white(high: int) -> None:
    values = (RAMP * high // 255).astype(">u2" if high > 255 else "u1")
    expected = np.rint(values / high * 255).astype(int)
    data = b"P5\n# a comment\n32 32\n%d\n" % high + values.tobytes()
    np.testing.assert_array_equal(tones(data)[..., 0], expected)
    text = b"P2 32 # wide\n32\n%d\n" % high + b" ".join(b"%d" % value for value in values.reshape(-1).tolist()) + b"\n"
    np.testing.assert_array_equal(tones(text)[..., 0], expected)
    colours = b"P6 32 32 %d\n" % high + np.repeat(values, 3).tobytes()
    np.testing.assert_array_equal(tones(colours), expected[..., None].repeat(3, -1))


def test_bitmaps_are_read_as_by_pillow() -> None:
    bits = Image.fromarray(RAMP.astype(np.uint8)).convert("1").crop((0, 0, 29, 32))
    buffer = io.BytesIO()
    bits.save(buffer, "PPM")
    np.testing.assert_array_equal(tones(buffer.getvalue())[..., 0], np.asarray(bits).astype(int) * 255)
    text = b"P1\n29 32\n" + b"".join(b"01"[not bit : (not bit) + 1] for bit in np.asarray(bits).reshape(-1).tolist())
    np.testing.assert_array_equal(tones(text)[..., 0], np.asarray(bits).astype(int) * 255)


@pytest.mark.parametrize(
    "data",
    [b"P5 9 9 255\n" + b"x" * 80, b"P2 9 9 255\n1 2 3", b"P2 9 9 9\n" + b"10 " * 81, b"P2 4 4 9 -1", b"P6 9 9 0\n"],
)
def test_a_damaged_ppm_is_reported(data: bytes) -> None:
    with pytest.raises(ImageError, match="the image is damaged"):
        read_image(data)


def test_a_tiff_of_other_channels_is_refused_by_name() -> None:
    values = np.zeros((20, 20, 3), np.uint8)
    data = bytearray(tiff(values))
    # 7 samples of a kind that is unknown
    place = data.index(b"\x15\x01\x03\0\x01\0\0\0")
    data[place + 8] = 7
    with pytest.raises(ImageError, match="has 7 channels of 8 bits") as error:
        read_image(bytes(data))
    assert error.value.problem == "not_convertible"


def test_what_was_scaled_and_left_out_is_noted() -> None:
    with decoding(tiff(RAMP.astype(np.uint16) * 16)) as (_, found):
        assert (found.white, found.notes) == (4095, ())
    with decoding(tiff(RAMP.astype(np.uint16) * 16, {281: 4095})) as (_, found):
        assert found.white is None
    buffer = io.BytesIO()
    pages = [Image.fromarray(RAMP.astype(np.uint8)), Image.new("L", (32, 32), 9)]
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    with decoding(buffer.getvalue()) as (_, found):
        assert found.notes == ("several_pictures",)


def test_padding_keeps_all_of_an_image_between_grey_margins() -> None:
    pixels = np.zeros((20, 80, 3), np.uint8)
    pixels[:, :4] = 255, 0, 0
    stored = Preprocess(size=40, store_size=40, fit="pad", interpolation="nearest").load(pixels)
    assert (stored[:15] == 128).all()
    assert (stored[25:] == 128).all()
    assert (stored[15:25, :2] == (255, 0, 0)).all()
    assert (stored[15:25, 2:] == 0).all()
    square = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Preprocess(size=40, store_size=40, fit="pad").load(square), square)
    sliver = Preprocess(size=32, store_size=32, fit="pad").load(np.zeros((4, 190, 3), np.uint8))
    assert (sliver == 0).all((1, 2)).sum() == 1
