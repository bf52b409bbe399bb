"""The decoder: what it opens, and what it refuses with which problem, whatever the calling program has set."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from vivace.data.decoding import decode
from vivace.data.decoding.decode import MAX_PIXELS, image_of, read_image
from vivace.data.decoding.picture import Limits
from vivace.errors import ImageError


def encoded(kind: str = "PNG", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def opened(source: Path | bytes, **options: Any) -> Image.Image:
    decoded = read_image(source, **options)
    return image_of(decoded) if isinstance(decoded, np.ndarray) else decoded


def png_header(width: int, height: int) -> bytes:
    """A valid PNG without pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def problem_of(source: Path | bytes, **options: object) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return caught.value.problem, str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "MPO"])
def test_the_formats_of_photos_are_opened(kind: str) -> None:
    assert opened(encoded(kind)).size == (40, 30)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "DDS", "JPEG2000"])
def test_other_formats_are_not_opened_even_if_pillow_could(kind: str) -> None:
    assert problem_of(encoded(kind))[0] in ("format_not_allowed", "not_an_image")


@pytest.mark.parametrize("magic", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.7", b"SIMPLE  =                    T"])
def test_formats_that_run_code_or_are_no_photos_are_named(magic: bytes) -> None:
    problem, message = problem_of(magic + b" " * 3000)
    assert problem == "format_not_allowed"
    assert (
        message
        == "the format is not allowed: the image. Convert it to JPEG, PNG, WebP, AVIF, HEIC, BMP, GIF, TIFF or PPM."
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    data = encoded(kind)
    assert problem_of(data[: int(len(data) * share)])[0] in ("truncated", "not_an_image")


def test_a_truncated_file_is_refused_in_a_program_that_accepts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded("JPEG")
    assert problem_of(data[: len(data) * 2 // 3])[0] == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES


STARTS = {
    "JPEG": b"\xff\xd8\xff\xe0",
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "WEBP": b"RIFF\xff\0\0\0WEBPVP8L",
    "GIF": b"GIF89a",
    "TIFF": b"II*\0\x08\0\0\0",
    "BigTIFF": b"MM\0+\0\x08\0\0",
    "BMP": b"BM" + b"\0" * 12 + b"\x28\0\0\0",
    "PPM": b"P6\n9 9\n255\n",
    "plain PPM": b"P3 9 9 255\n",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "HEIF": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "nothing": b"",
}


@pytest.mark.parametrize("start", STARTS)
def test_garbage_behind_any_beginning_raises_nothing_but_an_image_error(start: str) -> None:
    rng = np.random.default_rng(0)
    for length in rng.integers(0, 3000, 60):
        with contextlib.suppress(ImageError):
            opened(STARTS[start] + rng.bytes(int(length)), draft_size=8)


@pytest.mark.parametrize(
    "kind", ["JPEG", "progressive", "PNG", "WEBP", "GIF", "TIFF", "tiff_lzw", "BMP", "PPM", "AVIF"]
)
def test_mutated_files_raise_nothing_but_an_image_error_of_one_line(kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "progressive":
        whole = encoded("JPEG", progressive=True)
    else:
        whole = encoded("TIFF", compression=kind) if kind == "tiff_lzw" else encoded(kind)
    for number in range(120):
        data = bytearray(whole)
        for place in rng.integers(0, min(len(data), 400 if number % 2 else len(data)), 1 + number % 12):
            data[place] = rng.integers(0, 256)
        if number % 5 == 0:
            del data[rng.integers(0, len(data)) :]
        message = "decoded"
        try:
            opened(bytes(data), draft_size=8 if number % 3 else None)
        except ImageError as error:
            message = str(error)
        assert message.isprintable()
        assert len(message) < 500


def test_empty_files_and_text_are_refused() -> None:
    assert problem_of(b"") == ("empty", "the file is empty: the image. Restore it from a copy, or leave it out.")
    assert problem_of(b"this is text\n")[0] == "not_an_image"


def test_a_bomb_is_refused_by_its_header_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    # Pillow itself would only warn of this one
    problem, message = problem_of(png_header(12_000, 12_000))
    assert problem == "bomb"
    assert message.endswith(
        f"12000 × 12000, the limit is {MAX_PIXELS:,}. Make it smaller, or train with a higher data.max_pixels."
    )
    # and refuses this one
    assert problem_of(png_header(40_000, 40_000))[0] == "bomb"
    assert problem_of(encoded(), max_pixels=1199)[0] == "bomb"


def test_a_file_too_large_for_an_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.touch()
    os.truncate(path, decode.MAX_BYTES + 1)
    assert problem_of(path)[0] == "bomb"


@pytest.mark.parametrize(
    ("size", "problem"), [((1, 1), "too_small"), ((90, 3), "too_small"), ((4, 200), "extreme_aspect")]
)
def test_dots_and_strips_are_refused(size: tuple[int, int], problem: str) -> None:
    assert problem_of(encoded(size=size))[0] == problem


def test_the_smallest_and_the_longest_image_pass() -> None:
    assert opened(encoded(size=(4, 4))).size == (4, 4)
    assert opened(encoded(size=(4, 199))).size == (4, 199)


def test_a_file_is_read_by_its_content_whatever_its_extension(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded("BMP"))
    assert opened(path).size == (40, 30)
    assert decode.mismatch(str(path), "BMP")
    for kind, name in (("JPEG", "a.JPG"), ("JPEG", "a.mpo"), ("TIFF", "a.tif"), ("PNG", "a"), ("PNG", "a.thing")):
        assert not decode.mismatch(name, kind)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "nothing": lambda path: None,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_file_is_reported_and_does_not_block(tmp_path: Path, kind: str) -> None:
    UNREADABLE[kind](tmp_path / "x.png")
    assert problem_of(tmp_path / "x.png")[0] == "unreadable"


def test_a_file_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    path = tmp_path / "x.png"
    assert problem_of(path) == (
        "unreadable",
        f"the file can't be read: {path} (Permission denied). Check its permissions.",
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOENT, "Check the path: was it moved or renamed?"),
        (errno.ELOOP, "Fix the link, or leave it out."),
        (errno.EMFILE, "Close other files, or raise the limit (ulimit -n)."),
        (errno.EIO, "The disk fails: restore it from a copy."),
        (errno.ESTALE, "Check its disk, or leave it out."),
    ],
)
def test_the_advice_fits_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, "why")

    monkeypatch.setattr(os, "open", refuse)
    path = tmp_path / "x.png"
    assert problem_of(path) == ("unreadable", f"the file can't be read: {path} (why). {text}")


def test_reading_leaves_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded())
    (tmp_path / "folder").mkdir()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        opened(tmp_path / "x.png")
        problem_of(tmp_path / "folder")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_names_with_newlines_and_bytes_that_are_no_text_give_one_line(tmp_path: Path) -> None:
    problem, message = problem_of(tmp_path / "a\nb\udcff.png")
    assert problem == "unreadable"
    assert r"a\nb\udcff.png" in message
    message.encode()
    assert problem_of(tmp_path / "a\0b.png")[0] == "unreadable"


def test_running_out_of_memory_does_not_blame_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(MemoryError):
        opened(encoded())


def test_the_first_frame_of_an_animation_is_taken() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert opened(buffer.getvalue()).convert("RGB").getpixel((5, 5)) == (255, 0, 0)


def test_a_large_jpeg_is_decoded_at_no_less_than_twice_the_side_that_is_wanted() -> None:
    data = encoded("JPEG", (640, 480))
    assert opened(data).size == (640, 480)
    assert opened(data, draft_size=121).size == (640, 480)
    assert opened(data, draft_size=120).size == (320, 240)
    assert min(opened(data, draft_size=32).size) >= 64


def test_threads_that_decode_leave_the_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    data, before = encoded(), list(warnings.filters)
    inside = threading.Barrier(4, timeout=10)
    check = Limits.check

    def meet(*arguments: Any) -> None:
        inside.wait()
        check(*arguments)

    # all four are in the middle of an image at once, and leave in any order
    monkeypatch.setattr(Limits, "check", meet)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            list(pool.map(read_image, [data] * 4))
            assert warnings.filters == before
