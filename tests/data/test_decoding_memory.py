"""The peak memory of decoding, measured in a separate process, never exceeds what was granted."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivace.data.decoding.decode import read_image

SIDE = 2000
EXIF_6 = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
# memory that libraries keep after their first use, measured at two sizes
LIBRARIES = 8_000_000

# for every file and shape: granted memory and peak memory, bytes
MEASURE = """
import ctypes, json, sys
from pathlib import Path
from vivace.data.decoding import picture
from vivace.data.decoding.memory import Budget
from vivace.data.preprocess import Preprocess

class Noted(Budget):
    granted = 0
    def hold(self, num_bytes):
        self.granted = max(self.granted, num_bytes)
        return super().hold(num_bytes)

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])

libc = ctypes.CDLL(None)
found = []
for name in sys.argv[2:]:
    data = Path(name).read_bytes()
    # a JPEG is decoded in full where more than a quarter of its side is wanted
    side = int(sys.argv[1]) // 3 if data[:2] == bytes((0xFF, 0xD8)) else 32
    for channels, fit in ((3, "crop"), (1, "pad")):
        picture.DECODING = Noted(1 << 40)
        values = (0.5,) * channels
        preprocess = Preprocess(size=side, store_size=side, channels=channels, fit=fit, mean=values, std=values)
        # freed memory that the allocator keeps would not be counted when it is reused
        libc.malloc_trim(0)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        assert preprocess.load(data).shape == (side, side, channels)
        found.append((picture.DECODING.granted, status("VmHWM") - before))
print(json.dumps(found))
"""


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth: int, colour: int, *chunks: bytes, side: int = SIDE, interlaced: bool = False) -> bytes:
    """A PNG of zeros."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    if interlaced:
        sizes = [(8, 8, 0, 0), (8, 8, 0, 4), (8, 4, 4, 0), (4, 4, 0, 2), (4, 2, 2, 0), (2, 2, 0, 1), (2, 1, 1, 0)]
        passes = [(-(-(side - top) // down), -(-(side - left) // across)) for down, across, top, left in sizes]
        rows = b"".join(bytes(high * (1 + -(-wide * samples * depth // 8))) for high, wide in passes)
    else:
        rows = bytes(side * (1 + -(-side * samples * depth // 8)))
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    bits: int, samples: int, kind: int, photometric: int, *extra: tuple[int, int, int, int], side: int = SIDE
) -> bytes:
    """A TIFF of zeros, packed by deflate in one strip."""
    packed = zlib.compress(bytes(side * -(-side * samples * bits // 8)), 1)
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, samples, 400), (259, 3, 1, 8), (262, 3, 1, photometric)]
    entries += [(273, 4, 1, 2000), (277, 3, 1, samples), (278, 4, 1, side), (279, 4, 1, len(packed))]
    entries += [(339, 3, samples, 420), *extra]
    body = struct.pack("<H", len(entries))
    for tag, type_, count, value in sorted(entries):
        if tag in (258, 339) and count <= 2:
            number = bits if tag == 258 else kind
            body += struct.pack("<HHIHH", tag, type_, count, number, number)
        else:
            body += struct.pack("<HHII", tag, type_, count, value)
    head = (b"II*\0" + struct.pack("<I", 8) + body + b"\0\0\0\0").ljust(400, b"\0")
    head += struct.pack("<6H", *[bits] * 6).ljust(20, b"\0") + struct.pack("<6H", *[kind] * 6)
    return head.ljust(2000, b"\0") + packed


def saved(kind: str, mode: str, **options: object) -> Callable[[int], bytes]:
    def make(side: int) -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, (side, side)).save(buffer, kind, **options)
        return buffer.getvalue()

    return make


def animated(kind: str) -> Callable[[int], bytes]:
    def make(side: int) -> bytes:
        pages = [Image.new("RGBA", (side, side), (index, 0, 0, 100)) for index in range(3)]
        buffer = io.BytesIO()
        pages[0].save(buffer, kind, save_all=True, append_images=pages[1:])
        return buffer.getvalue()

    return make


def pnm(head: bytes, size: int, fill: bytes = b"\0") -> Callable[[int], bytes]:
    return lambda side: head % (side, side) + (fill * (side * side * size))[: side * side * size]


def extra(samples: int, photometric: int) -> list[tuple[int, int, int, int]]:
    spare = samples - {2: 3, 5: 4, 6: 3, 8: 3}.get(photometric, 1)
    return [(338, 3, spare, 2)] if spare == 1 else [(338, 3, spare, 0)] if spare == 2 else []


PALETTE = chunk(b"PLTE", b"\1\2\3" * 256), chunk(b"tRNS", b"\x80" * 256)
TURNED = chunk(b"eXIf", EXIF_6[6:])
MADE: dict[str, Callable[[int], bytes]] = {
    **{
        f"png {n} x{c}": lambda s, n=n, c=c: png(n, c, *PALETTE[: c == 3], side=s)
        for c, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items()
        for n in depths
    },
    **{
        f"png {n} x{c} turned": lambda s, n=n, c=c: png(n, c, *PALETTE[: c == 3], TURNED, side=s)
        for c, depths in {0: (1, 8, 16), 2: (8, 16), 3: (8,), 4: (8, 16), 6: (8, 16)}.items()
        for n in depths
    },
    **{
        f"png {n} x{c} interlaced": lambda s, n=n, c=c: png(n, c, *PALETTE[: c == 3], side=s, interlaced=True)
        for c, depths in {0: (8, 16), 2: (8, 16), 4: (8, 16), 6: (8, 16)}.items()
        for n in depths
    },
    "png palette tRNS": lambda s: png(8, 3, *PALETTE, side=s),
    "png palette tRNS turned": lambda s: png(8, 3, *PALETTE, TURNED, side=s),
    "png 1 tRNS": lambda s: png(1, 0, chunk(b"tRNS", b"\0\1"), side=s),
    "png 8 tRNS": lambda s: png(8, 0, chunk(b"tRNS", b"\0\1"), side=s),
    "png 16 tRNS": lambda s: png(16, 0, chunk(b"tRNS", b"\0\1"), side=s),
    "png rgb tRNS": lambda s: png(8, 2, chunk(b"tRNS", b"\0\1\0\1\0\1"), side=s),
    "png rgb16 tRNS": lambda s: png(16, 2, chunk(b"tRNS", b"\0\1\0\1\0\1"), side=s),
    **{
        f"tiff {n} x{c} f{k} p{p}": lambda s, n=n, c=c, k=k, p=p: tiff(n, c, k, p, *extra(c, p), side=s)
        for n, c, k, p in (
            (1, 1, 1, 1),
            (8, 1, 1, 1),
            (8, 1, 1, 0),
            (8, 1, 2, 1),
            (16, 1, 1, 1),
            (16, 1, 1, 0),
            (16, 1, 2, 1),
            (32, 1, 1, 1),
            (32, 1, 2, 1),
            (32, 1, 3, 1),
            (12, 1, 1, 1),
            (8, 2, 1, 1),
            (8, 3, 1, 2),
            (8, 4, 1, 2),
            (16, 3, 1, 2),
            (16, 4, 1, 2),
            (8, 4, 1, 5),
            (16, 4, 1, 5),
            (8, 3, 1, 6),
            (8, 3, 1, 8),
            (8, 5, 1, 2),
        )
    },
    **{
        f"tiff raw {m}": saved("TIFF", m)
        for m in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F", "P", "RGBX")
    },
    **{
        f"tiff {c} {m}": saved("TIFF", m, compression=c)
        for c in ("jpeg", "tiff_lzw", "packbits", "tiff_adobe_deflate")
        for m in ("L", "RGB")
    },
    "tiff lzw RGBA": saved("TIFF", "RGBA", compression="tiff_lzw"),
    "tiff lzw turned": saved("TIFF", "RGB", compression="tiff_lzw", tiffinfo={274: 6}),
    "tiff raw turned": saved("TIFF", "RGB", tiffinfo={274: 6}),
    "tiff I;16 turned": saved("TIFF", "I;16", tiffinfo={274: 6}),
    "tiff F turned": saved("TIFF", "F", tiffinfo={274: 6}),
    "tiff jpeg ycc": saved("TIFF", "YCbCr", compression="jpeg"),
    "tiff group4": saved("TIFF", "1", compression="group4"),
    **{
        f"jpeg {m} {'prog' if p else 'base'}{' turned' if e else ''} {sub}": saved(
            "JPEG", m, progressive=p, subsampling=sub, **e
        )
        for m in ("L", "RGB", "CMYK")
        for p in (False, True)
        for e in ({}, {"exif": EXIF_6})
        for sub in (0, 2)
    },
    **{
        f"webp {m} {whole}{' turned' if e else ''}": saved("WEBP", m, lossless=whole, **e)
        for m in ("RGB", "RGBA")
        for whole in (False, True)
        for e in ({}, {"exif": EXIF_6})
    },
    "webp animated": animated("WEBP"),
    **{
        f"avif {m} {sub}{' turned' if e else ''}": saved("AVIF", m, speed=10, subsampling=sub, **e)
        for m in ("L", "RGB", "RGBA")
        for sub in ("4:2:0", "4:4:4")
        for e in ({}, {"exif": EXIF_6})
    },
    "avif animated": animated("AVIF"),
    **{f"gif {m}": saved("GIF", m) for m in ("L", "P", "RGB", "1", "RGBA")},
    "gif interlaced": saved("GIF", "L", interlace=1),
    "gif transparent": saved("GIF", "P", transparency=0),
    "gif animated": animated("GIF"),
    **{f"bmp {m}": saved("BMP", m) for m in ("1", "L", "P", "RGB", "RGBA")},
    "ppm P1": pnm(b"P1 %d %d\n", 1, b"1"),
    "ppm P2": pnm(b"P2 %d %d 255\n", 2, b"1 "),
    "ppm P2 100": pnm(b"P2 %d %d 100\n", 2, b"1 "),
    "ppm P3": pnm(b"P3 %d %d 255\n", 6, b"1 "),
    "ppm P4": lambda s: b"P4 %d %d\n" % (s, s) + bytes(s * s // 8),
    "ppm P5": pnm(b"P5 %d %d 255\n", 1),
    "ppm P5 100": pnm(b"P5 %d %d 100\n", 1),
    "ppm P5 65535": pnm(b"P5 %d %d 65535\n", 2),
    "ppm P6": pnm(b"P6 %d %d 255\n", 3),
    "ppm P6 100": pnm(b"P6 %d %d 100\n", 3),
    "ppm P6 65535": pnm(b"P6 %d %d 65535\n", 6),
}


def group_of(name: str) -> str:
    return "png 16" if name.startswith("png 16") else name.split()[0]


@pytest.mark.slow
@pytest.mark.parametrize("group", sorted({group_of(name) for name in MADE}))
def test_decoding_takes_no_more_memory_than_was_granted_for_any_format(group: str, tmp_path: Path) -> None:
    names = [name for name in MADE if group_of(name) == group]
    paths = [tmp_path / str(number) for number in range(len(names))]
    for name, path in zip(names, paths, strict=True):
        path.write_bytes(MADE[name](SIDE))
    command = [sys.executable, "-c", MEASURE, str(SIDE), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == 2 * len(names)
    for number, (granted, taken) in enumerate(found):
        told = names[number // 2], granted / SIDE**2, taken / SIDE**2
        # at least the picture itself is counted, so the measurement works
        assert granted > SIDE * SIDE, told
        assert taken < granted + LIBRARIES, told


def test_plain_colours_of_8_bits_are_read() -> None:
    pixels = read_image(b"P3 4 4 255\n" + b"1 2 255 " * 16)
    assert isinstance(pixels, np.ndarray)
    assert pixels.dtype == np.uint8
    assert (pixels == (1, 2, 255)).all()


@pytest.mark.parametrize("whites", [(1, 1), (15, 255), (255, 4095), (4095, 65535), (65535, 1)])
def test_grey_and_alpha_have_separate_whites(whites: tuple[int, int]) -> None:
    values = np.stack([np.linspace(0, white, 1024).round().reshape(32, 32) for white in whites], -1).astype(np.int64)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 32, 32, 16, 4, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    found = np.asarray(read_image(b"\x89PNG\r\n\x1a\n" + b"".join(parts)))
    for at, white in enumerate(whites):
        expected = values[..., at] * 255 if white == 1 else values[..., at] * 256 // (white + 1)
        np.testing.assert_array_equal(found[..., at], expected)
