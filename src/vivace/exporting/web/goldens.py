"""Golden images of a page: some of the data, and generated ones for what cameras and editors do to image files."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vivace.bundle import Bundle
from vivace.data.decoding.decode import image_of, sniff
from vivace.data.decoding.formats import HEAD_BYTES
from vivace.data.place import AnyData
from vivace.data.preprocess import EXIF_ORIENTATION
from vivace.errors import ImageError
from vivace.exporting.deployment.goldens import Golden, choose_goldens

__all__ = ["decoded_by_pillow", "web_goldens"]

# of the data; on a page that many people load
NUM_OF_DATA = 8
# what the page reads, of those with 8 bits in grey, RGB or a palette, with or without transparency
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
# where a PNG tells its bits per channel: of 16 Pillow shows 8
PNG_BITS = 24
# sides up to which a JPEG is generated that is large enough to be made smaller while it is decoded
MAX_SIDE = 512


def web_goldens(bundle: Bundle, data: AnyData | None, *, cache_dir: Path | None = None) -> list[Golden]:
    """Up to 8 images of `data`, as `choose_goldens` chooses them, and five or six generated ones.

    Images of the data that browsers can't read, or not alike (TIFF, HEIC, AVIF, 16 bits, CMYK), are encoded as PNG.
    """
    chosen = choose_goldens(bundle, data, cache_dir=cache_dir, count=NUM_OF_DATA)
    return [*(_readable(golden, bundle) for golden in chosen), *_generated(bundle.preprocess.store_size)]


def _readable(golden: Golden, bundle: Bundle) -> Golden:
    kind = sniff(golden.data[:HEAD_BYTES])
    if kind in KINDS and not (kind == "PNG" and golden.data[PNG_BITS] > 8):
        with Image.open(io.BytesIO(golden.data)) as image:
            if image.mode in MODES:
                return golden
    try:
        with bundle.preprocess.decoding(golden.data) as (_, picture):
            pixels = picture.pixels if isinstance(picture.pixels, Image.Image) else image_of(picture.pixels)
            upright = pixels.convert("RGB" if pixels.mode not in MODES else pixels.mode)
    except (ImageError, ValueError):
        return golden
    return dataclasses.replace(golden, data=_encoded(upright, "PNG"), extension=".png")


def _generated(side: int) -> list[Golden]:
    """Names tell what is particular about each."""
    wide, exif = _picture(side * 2 + 13, side + 21), Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    clear = wide.convert("RGBA")
    clear.putalpha(wide.convert("L"))
    found = {
        "jpeg-4-2-0.jpg": _encoded(wide, "JPEG", quality=88, subsampling=2),
        "jpeg-turned.jpg": _encoded(wide, "JPEG", quality=88, exif=exif),
        "png-transparent.png": _encoded(clear, "PNG"),
        "png-grey.png": _encoded(wide.convert("L"), "PNG"),
        "webp.webp": _encoded(wide, "WEBP", quality=85),
    }
    if side <= MAX_SIDE:
        found["jpeg-large.jpg"] = _encoded(
            _picture(side * 6 + 5, side * 4 + 3, min(1, side / 28)), "JPEG", quality=80, exif=exif
        )
    return [
        Golden(data=data, extension=Path(name).suffix, label=None, source=Path(name).stem)
        for name, data in found.items()
    ]


def _picture(width: int, height: int, detail: float = 1) -> Image.Image:
    """Waves of different lengths with edges and some noise, RGB: what resizing and decoders differ in.

    detail: how many waves there are; 1: some ten each way.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width] / max(width, height)
    turns = detail * np.stack([15 * columns + 4 * rows, 25 * rows * columns, 20 * (rows - columns)], -1)
    # edges in grey: in colour no photo has as many
    waves = 60 * np.sin(turns) + 25 * np.sign(np.sin(3 * turns[..., :1]))
    pixels = 128 + waves + rng.normal(0, 4, waves.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded_by_pillow(goldens: list[Golden], folder: Path) -> None:
    """What Pillow decodes of each image, not turned: NN.rgba, and sizes.json with [width, height] of each."""
    sizes = []
    for number, golden in enumerate(goldens):
        with Image.open(io.BytesIO(golden.data)) as image:
            (folder / f"{number:02d}.rgba").write_bytes(image.convert("RGBA").tobytes())
            sizes.append(list(image.size))
    (folder / "sizes.json").write_text(json.dumps(sizes))
