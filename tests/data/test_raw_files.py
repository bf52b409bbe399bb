"""Files whose pixels are kept as they are: TIFF of many channels, PNG of 16 bits, .npy; and attacks on them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tiffs import tiff_bytes
from vivace.data.decoding.decode import read_image, size_of
from vivace.data.decoding.raw_files import raw_decoding
from vivace.data.place import Data
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import DataError, ImageError

RNG = np.random.default_rng(0)
UINT16 = RNG.integers(0, 65536, (40, 24, 5), dtype=np.uint16)


def decoded(data: bytes | Path, max_pixels: int = 100_000) -> np.ndarray:
    with raw_decoding(data, max_pixels=max_pixels, side=8) as (_, picture):
        assert isinstance(picture.pixels, np.ndarray)
        return picture.pixels


LAYOUTS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "strips": {"rows": 7},
    "deflate": {"deflate": True, "rows": 7},
    "a predictor": {"deflate": True, "predictor": True, "rows": 7},
    "tiles": {"tile": 16, "deflate": True},
    "tiles with a predictor": {"tile": 16, "deflate": True, "predictor": True},
    "planes": {"separate": True},
    "planes in strips": {"separate": True, "rows": 9, "deflate": True},
    "planes in tiles": {"separate": True, "tile": 16, "deflate": True, "predictor": True},
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tiff_of_five_channels_of_16_bits_is_read_to_the_last_bit(layout: str, order: str) -> None:
    data = tiff_bytes(UINT16, order=order, **LAYOUTS[layout])
    assert np.array_equal(decoded(data), UINT16)
    assert size_of(data) == (24, 40)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_every_dtype_and_number_of_channels_is_read(channels: int, deflate: bool, order: str) -> None:
    for values in (
        RNG.integers(0, 256, (9, 16, channels), dtype=np.uint8),
        RNG.integers(0, 65536, (9, 16, channels), dtype=np.uint16),
        RNG.normal(0, 1e4, (9, 16, channels)).astype(np.float32),
    ):
        found = decoded(tiff_bytes(values, order=order, deflate=deflate, rows=4))
        assert found.dtype == values.dtype
        assert np.array_equal(found, values)


def test_a_picture_is_turned_upright() -> None:
    # as Pillow turns a grey one
    grey = UINT16[..., :1]
    for orientation in range(1, 9):
        found = decoded(tiff_bytes(grey, orientation=orientation))
        method = Image.fromarray(np.arange(40 * 24, dtype=np.int32).reshape(40, 24))
        turned = read_image(tiff_bytes((grey >> 8).astype(np.uint8), orientation=orientation))
        assert np.array_equal(np.asarray(turned).reshape(found.shape[:2]), found[..., 0] >> 8), method


@pytest.mark.parametrize(("mode", "shape"), [("grey", (6, 8)), ("RGB", (6, 8, 3))])
def test_a_png_of_16_bits_is_read_to_the_last_bit(mode: str, shape: tuple[int, ...]) -> None:
    values = RNG.integers(0, 65536, shape, dtype=np.uint16)
    buffer = io.BytesIO()
    if mode == "grey":
        Image.fromarray(values).save(buffer, "PNG")
        data = buffer.getvalue()
    else:
        data = png_of_16_bits(values)
    assert np.array_equal(decoded(data), values.reshape(6, 8, -1))


def png_of_16_bits(values: np.ndarray) -> bytes:
    """RGB, which Pillow does not write: by the specification."""
    import struct
    import zlib

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_an_array_in_a_file_is_read_wherever_its_channels_are(tmp_path: Path) -> None:
    preprocess = Preprocess(size=24, store_size=24, channels=5, pixels="uint16", mean=(0.5,) * 5, std=(0.25,) * 5)
    expected = preprocess.load(UINT16)
    for name, array in (("last", UINT16), ("first", UINT16.transpose(2, 0, 1)), ("fortran", np.asfortranarray(UINT16))):
        np.save(tmp_path / f"{name}.npy", array)
        assert np.array_equal(preprocess.load(tmp_path / f"{name}.npy"), expected)
    # larger than what is read of a file that is no image
    large = RNG.integers(0, 65536, (200, 200, 5), dtype=np.uint16)
    np.save(tmp_path / "large.npy", large)
    assert np.array_equal(decoded(tmp_path / "large.npy"), large)


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n"


ATTACKS: dict[str, tuple[bytes, str]] = {
    "a bomb": (tiff_bytes(UINT16, deflate=True, size=(60_000, 60_000)), "too many pixels"),
    "many channels": (tiff_bytes(np.zeros((400, 240, 200), np.uint16), deflate=True), "decoding .* MB, the limit is"),
    "a strip that unpacks to more": (tiff_bytes(UINT16, deflate=True, size=(24, 4)), ""),
    "cut off": (tiff_bytes(UINT16)[:2000], "damaged|can't be kept"),
    "more rows than it has": (tiff_bytes(UINT16, deflate=True, rows=4, size=(24, 400)), "damaged"),
    "wider than it is": (tiff_bytes(UINT16, deflate=True, size=(240, 40)), "damaged"),
    "signed": (tiff_bytes(UINT16.astype(np.int16)), r"5 channels of 16 bits \(sample format 2\)"),
    "a palette": (tiff_bytes(UINT16[..., :1], photometric=3), "can't be kept as they are"),
    "objects": (npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 4), }"), "holds no image|damaged"),
    "a cut array": (b"\x93NUMPY\x01\x00v\x00", "damaged"),
    "an endless header": (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"(" * 4096, "damaged"),
    "nothing": (b"", "not an image|empty"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_file_that_is_broken_or_built_to_harm_is_one_error(attack: str) -> None:
    data, message = ATTACKS[attack]
    if not message:
        # what its decoder leaves out is not looked at
        assert decoded(data).shape == (4, 24, 5)
        return
    with pytest.raises(ImageError, match=message):
        decoded(data)


def test_random_changes_of_a_file_raise_nothing_but_image_errors() -> None:
    whole = tiff_bytes(UINT16, deflate=True, rows=7)
    rng = np.random.default_rng(1)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = int(rng.integers(0, 256))
        try:
            assert decoded(bytes(data)).ndim == 3
        except ImageError:
            continue


def folder_of(root: Path, images: list[np.ndarray], names: tuple[str, ...] = ("a", "b")) -> Path:
    for number, image in enumerate(images):
        place = root / names[number % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.tif").write_bytes(tiff_bytes(image, deflate=True))
    return root


def test_a_folder_of_tiffs_of_many_channels_is_known_by_their_headers(tmp_path: Path) -> None:
    source = open_source(folder_of(tmp_path / "bands", [UINT16] * 6))
    assert (source.channels, source.pixels) == (5, "uint16")
    assert "the images have 5 channels of uint16: they are kept as they are" in source.notes
    # grey of 16 bits is reduced to 8, unless it is said otherwise
    grey = folder_of(tmp_path / "grey", [UINT16[..., :1]] * 6)
    assert (open_source(grey).channels, open_source(grey).pixels) == (3, "uint8")
    kept = open_source(Data(grey, pixels="uint16"))
    assert (kept.channels, kept.pixels) == (1, "uint16")
    with pytest.raises(DataError, match=r"not float32, as `data\.pixels` asks: grey has uint16 with 1 channel\. Leave"):
        open_source(Data(grey, pixels="float32"))


def test_a_tiff_of_many_channels_says_how_to_train_on_all_of_them() -> None:
    with pytest.raises(ImageError, match=r"13 channels of 16 bits .* data\.channels=13 data\.pixels=uint16"):
        read_image(tiff_bytes(np.zeros((8, 8, 13), np.uint16)))
