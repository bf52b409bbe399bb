"""Files that would take minutes or gigabytes are refused before a decoder sees them."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivace.data.decoding import headers, memory, picture
from vivace.data.decoding.decode import decoding, read_image, size_of
from vivace.data.decoding.headers import read_jpeg
from vivace.data.decoding.memory import Budget
from vivace.errors import ImageError
from vivace.systems import FileLock


def encoded(kind: str, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def many_scans(count: int, size: tuple[int, int] = (512, 512)) -> bytes:
    """A progressive JPEG whose last scan is repeated many times."""
    data = encoded("JPEG", size, progressive=True, quality=30)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG of zeros, which take a thousandth of their size."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = b"\0" * (1 + width * channels * depth // 8)
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def png_with(*chunks: bytes) -> bytes:
    data = encoded("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def tiff(entries: list[tuple[int, int, int, int]], extra: bytes = b"") -> bytes:
    """A TIFF file of one directory: (tag, type, count, value or offset)."""
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<I", 8) + body + b"\0\0\0\0" + extra


def overlapping_tags() -> bytes:
    """2,000 tags that each claim the whole file: 200 MB out of 100 kB."""
    return tiff([(tag, 7, 90_000, 8) for tag in range(30_000, 32_000)], b"\0" * 80_000)


def avif_with_overlapping_tags() -> bytes:
    evil = overlapping_tags()
    plain = tiff([]).ljust(len(evil), b" ")
    data = encoded("AVIF", exif=plain)
    assert plain in data
    return data.replace(plain, evil)


def huge_tile() -> bytes:
    plain = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    return tiff([*plain, (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 8), (325, 4, 1, 100)], b"\0" * 200)


def webp_canvas(width: int, height: int) -> bytes:
    """34 bytes that make the decoder allocate the canvas twice."""
    body = struct.pack("<I", 0x10) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 26) + b"WEBPVP8X" + struct.pack("<I", 10) + body + b"\0\0\0\0"


def gif_with_comments(count: int) -> bytes:
    data = encoded("GIF")
    start = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    return data[:start] + b"\x21\xfe" + b"\x01x" * count + b"\0" + data[start:]


def runs(size: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 4000, 4000, 1, 8, 1, size, 0, 0, 256, 0)
    offset = 14 + 40 + 1024
    return b"BM" + struct.pack("<IHHI", offset + size, 0, 0, offset) + header + b"\0" * 1024 + b"\x01\x07" * (size // 2)


REFUSED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jpeg of 300 scans": ("scans of", lambda: many_scans(300)),
    "jpeg of many segments": ("too many segments", lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 200_001 + b"\xff\xda"),
    "png of many chunks": ("too many chunks", lambda: png_with(chunk(b"tEXt", b"") * 200_001)),
    "png of colours and alpha": ("takes 787 MB, the limit is 768 MB", lambda: png(8000, 12300, 8, 6)[:5000]),
    "png of 16-bit colours and alpha": (
        "takes twice 448 MB, the limit is 440 MB",
        lambda: png(8000, 7000, 16, 6)[:5000],
    ),
    "png of 16-bit colours": ("takes twice 450 MB, the limit is 440 MB", lambda: png(10000, 7500, 16, 2)[:5000]),
    "png of 16-bit grey and alpha": ("takes 784 MB, the limit is 768 MB", lambda: png(9800, 10000, 16, 4)[:5000]),
    "webp of 34 bytes": ("takes 1,600 MB, the limit is 768 MB", lambda: webp_canvas(10_000, 10_000)),
    "ppm with a comment of 50 MB": ("no size in the first", lambda: b"P6\n#" + b"x" * 50_000_000 + b"\n4 4\n255\n"),
    "tiff of tags that overlap": ("claim more bytes than it has", overlapping_tags),
    "tiff with a huge tile": ("takes 3,600 MB", huge_tile),
    "gif behind comments": ("bytes of comments", lambda: gif_with_comments(3 << 20)),
    "bmp of runs": ("bytes of run-length encoded data", lambda: runs(5 << 20)),
    "avif with such an exif": ("claim more bytes", avif_with_overlapping_tags),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_exhaust_the_machine_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, make = REFUSED[name]
    data = make()

    def load(_: object) -> None:
        raise AssertionError("decoded")

    # modules that Pillow imports at first use load pictures themselves
    Image.init()
    if not name.startswith("avif"):
        monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(ImageError, match=text) as caught:
        read_image(data)
    assert caught.value.problem in ("bomb", "truncated")
    assert len(str(caught.value)) < 300


def test_the_scans_that_encoders_write_pass() -> None:
    for options in ({"progressive": True}, {"progressive": True, "subsampling": 0}, {}):
        assert np.asarray(read_image(encoded("JPEG", (200, 150), **options))).shape == (150, 200, 3)
    assert np.asarray(read_image(many_scans(40, (64, 64)))).shape == (64, 64, 3)
    # markers of scans in a thumbnail or a second picture do not count
    data = encoded("JPEG") + b"\xff\xda" * 1000
    assert np.asarray(read_image(data)).shape == (48, 64, 3)


def test_scans_are_counted_by_the_pixels_that_they_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = many_scans(10, (256, 256))
    header = read_jpeg(data)
    assert header is not None
    assert (header.width, header.height, header.buffered) == (256, 256, True)
    # 4:2:0: a half of a sample in each of two planes, beside the whole of the first
    assert header.samples() == 1.5
    assert header.coefficient_bytes() == 256 * 256 * 3
    monkeypatch.setattr(headers, "MAX_VISITS", 256 * 256 * 8)
    with pytest.raises(ImageError, match=r"scans of 65,536 pixels\. Save it again"):
        read_image(data)


def test_text_and_profiles_are_not_unpacked() -> None:
    bomb = zlib.compress(b"\0" * 50_000_000)
    parts = [
        chunk(b"zTXt", b"note\0\0" + bomb),
        chunk(b"iCCP", b"profile\0\0" + bomb),
        chunk(b"iTXt", b"x\0\1\0\0\0" + bomb),
    ]
    expected = np.asarray(read_image(encoded("PNG")))
    np.testing.assert_array_equal(np.asarray(read_image(png_with(*parts))), expected)
    # hundreds of segments of metadata in a JPEG, each to be copied again with the next
    data = encoded("JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 65_000) + b"Exif\0\0" + b"\0" * 64_992
    started = time.process_time()
    np.testing.assert_array_equal(
        np.asarray(read_image(data[:2] + segment * 400 + data[2:])), np.asarray(read_image(data))
    )
    assert time.process_time() - started < 5


def test_the_size_is_read_without_a_decoder(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"):
        (tmp_path / "x").write_bytes(encoded(kind))
        assert size_of(tmp_path / "x") == (64, 48)
    for name in ("ppm with a comment of 50 MB", "gif behind comments", "tiff of tags that overlap"):
        (tmp_path / "x").write_bytes(REFUSED[name][1]())
        with pytest.raises(ImageError):
            size_of(tmp_path / "x")


def gif_of(extensions: bytes, frame: tuple[int, int]) -> bytes:
    """A GIF of 64 x 48 whose one picture is said to be `frame`, to be followed by a background."""
    control = b"!\xf9\x04\x08\0\0\0\0"
    return b"GIF89a" + struct.pack("<2H3B", 64, 48, 0, 0, 0) + extensions + control + b"," + struct.pack(
        "<4HB", 0, 0, *frame, 0
    ) + b"\x02\x02\x44\x01\0;"  # fmt: skip


@pytest.mark.parametrize(
    "extensions",
    [
        b"",
        b"\0\0x",
        b"!\xfe\0",
        b"!\xfe\x02ab\x01c\0",
        # blocks that end too soon: Pillow reads on where others stop
        b"!\xf9\0\x09,\0\0\0\0\x40\0\x40\0\0",
        b"!\xff\x0bNETSCAPE2.0\0\x09,\0\0\0\0\x40\0\x40\0\0",
    ],
)
def test_a_gifs_first_picture_is_measured_before_pillow_allocates_it(
    extensions: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = gif_of(extensions, (80, 60))
    (tmp_path / "x").write_bytes(small)
    assert size_of(tmp_path / "x") == Image.open(io.BytesIO(small)).size == (80, 60)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ImageError, match="too many pixels: the image is 65535 × 65535"):
        read_image(gif_of(extensions, (65535, 65535)))


@pytest.mark.parametrize(
    ("kind", "size", "options"),
    [("JPEG", (15_000, 12_000), {"draft_size": 32}), ("PNG", (13_600, 13_200), {"max_pixels": 180_000_000})],
)
def test_our_pixel_limits_replace_pillows(kind: str, size: tuple[int, int], options: dict[str, int]) -> None:
    before = Image.MAX_IMAGE_PIXELS
    data = io.BytesIO()
    Image.new("L" if kind == "JPEG" else "1", size).save(data, kind)
    with decoding(data.getvalue(), **options) as (_, opened):
        assert max(np.asarray(opened.pixels).shape[:2]) * (8 if kind == "JPEG" else 1) == size[0]
        assert Image.MAX_IMAGE_PIXELS is None
    assert before == Image.MAX_IMAGE_PIXELS == 89_478_485
    with pytest.raises(ImageError, match="too many pixels: the image is"):
        read_image(data.getvalue())


# --- memory


def test_threads_share_one_budget() -> None:
    budget, held, most = Budget(10 << 20), [0], [0]
    lock = threading.Lock()

    def work(size: int) -> None:
        with budget.hold(size):
            with lock:
                held[0] += size
                most[0] = max(most[0], held[0])
            time.sleep(0.002)
            with lock:
                held[0] -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3 << 20] * 40))
    assert 3 << 20 <= most[0] <= 10 << 20
    # a request for more than the budget runs alone and is not starved
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [20 << 20, 3 << 20] * 10))
    assert most[0] == 20 << 20


def test_the_memory_is_held_until_the_picture_is_done_with(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(1 << 30)
    monkeypatch.setattr(picture, "DECODING", budget)
    with decoding(encoded("PNG", (1000, 800))) as (_, found):
        assert budget._held >= 1000 * 800 * 4
        assert np.asarray(found.pixels).shape == (800, 1000, 3)
    assert budget._held == 0
    with pytest.raises(ImageError), decoding(encoded("PNG", (1000, 800))[:5000]):
        pass
    assert budget._held == 0


def test_processes_take_large_images_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pixels.npy").touch()
    budgets = Budget(100 << 20), Budget(400 << 20)
    monkeypatch.setattr(memory, "READING", budgets[0])
    monkeypatch.setattr(memory, "DECODING", budgets[1])
    pixels = str(tmp_path / "pixels.npy")
    memory.share_memory(4, [FileLock(str(tmp_path)), FileLock(pixels)])
    assert [budget.capacity for budget in budgets] == [25 << 20, 100 << 20]
    other = Budget(1)
    other.turn = FileLock(pixels)
    order = []

    def wait() -> None:
        with other.hold(2 << 20):
            order.append("other")

    with budgets[1].hold(200 << 20):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]


PEAK = """
import resource, sys
from vivace.data.decoding.decode import MAX_PIXELS
from vivace.data.preprocess import Preprocess
from vivace.errors import ImageError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(Preprocess(size=32, store_size=32).load(sys.argv[1]).shape, end=" ")
except ImageError as error:
    print(error.problem, end=" ")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def peak_mb(path: Path) -> tuple[str, int]:
    """(result, MB that decoding took), measured in a separate process."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    said, _, peak = done.stdout.strip().rpartition(" ")
    return said, int(peak)


def test_a_photo_of_108_megapixels_is_decoded_smaller_in_little_memory(tmp_path: Path) -> None:
    image = Image.new("RGB", (12_000, 9_000), (200, 30, 30))
    image.save(tmp_path / "phone.jpg", quality=50)
    del image
    said, peak = peak_mb(tmp_path / "phone.jpg")
    assert said == "(32, 32, 3)"
    assert peak < 100


def test_the_pixel_limit_is_a_field_that_the_message_names() -> None:
    data = encoded("PNG", (200, 100))
    with pytest.raises(
        ImageError, match=r"the limit is 19,999\. Make it smaller, or train with a higher data\.max_pixels\.$"
    ):
        read_image(data, max_pixels=19_999)
    assert np.asarray(read_image(data, max_pixels=20_000)).shape == (100, 200, 3)
    # a JPEG that is decoded at an eighth may have five times as many
    photo = encoded("JPEG", (500, 400))
    assert np.asarray(read_image(photo, max_pixels=40_000, draft_size=20)).shape == (50, 63, 3)
    for options in ({"max_pixels": 39_999, "draft_size": 20}, {"max_pixels": 199_999}):
        with pytest.raises(ImageError, match="too many pixels: the image is 500 × 400"):
            read_image(photo, **options)
