"""Headers of JPEG files: one identical to the last is not parsed again, and no other is mistaken for it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vivace.data.decoding import opening
from vivace.data.decoding.headers import Jpeg, Unfit
from vivace.data.decoding.opening import _header_of


def jpeg(side: int, seed: int = 0, **options: object) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.fixture(autouse=True)
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening._Last, "header", None)


def test_the_same_header_is_read_once_and_another_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read, taken = opening.read_jpeg, []
    monkeypatch.setattr(opening, "read_jpeg", lambda data: taken.append(data) or read(data))
    same, other = [jpeg(16, seed) for seed in range(3)], jpeg(24)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = jpeg(16, exif=exif)
    found = [_header_of(data) for data in (*same, other, turned, same[0])]
    assert taken == [same[0], other, turned, same[0]]
    assert [(header.width, bool(header.exif)) for header in found if header] == [
        (16, False), (16, False), (16, False), (24, False), (16, True), (16, False),
    ]  # fmt: skip
    assert all(header == read(data) for header, data in zip(found, (*same, other, turned, same[0]), strict=True))


def test_scans_are_counted_in_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    good = jpeg(16, progressive=True)
    header = _header_of(good)
    assert isinstance(header, Jpeg)
    assert header.buffered
    # the same header, and scans without end
    scan = good[header.scan : good.index(b"\xff", header.scan + 2)]
    with pytest.raises(Unfit, match="scans"):
        _header_of(good[:-2] + scan * 200 + b"\xff\xd9")


def test_a_file_that_ends_in_its_header_is_not_kept() -> None:
    whole = jpeg(16)
    header = _header_of(whole)
    assert isinstance(header, Jpeg)
    assert _header_of(whole[: header.scan]) is None
    opening._Last.header = None
    _header_of(whole[: header.scan + 5])
    assert opening._Last.header is None
