"""Golden images: files with the answers that they got where a deployment was made, for tests where it runs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivace.bundle import Bundle
from vivace.data.decoding.decode import image_of, read_bytes
from vivace.data.decoding.formats import FORMATS, HEAD_BYTES, sniff
from vivace.data.place import AnyData
from vivace.data.splits import Split
from vivace.evaluation.evaluate import open_split
from vivace.exporting.parity import TOLERANCE, parity_images

__all__ = ["Golden", "choose_goldens", "write_goldens"]

NUM_GOLDENS = 16
# larger files are taken only where a class has no others: the folder is to stay small
MAX_FILE_BYTES = 2**20
# of an 8-bit variant on another processor: with OpenVINO held to AVX2, which has no instructions for it, answers of a
# small convnet moved by 0.045
INT8_REPEAT_TOLERANCE = 0.1


@dataclass(frozen=True, kw_only=True)
class Golden:
    """An image as its file has it."""

    data: bytes
    extension: str
    label: str | None
    """Its class; None for a generated image."""
    source: str
    """Its name in the data set, or "generated"."""


def choose_goldens(
    bundle: Bundle, data: AnyData | None, *, cache_dir: Path | None = None, count: int = NUM_GOLDENS
) -> list[Golden]:
    """Up to `count` images of the test split of `data`, else val, else all, of every class as many as of the others.

    Files are copied as they are; other images are encoded as PNG, or as .npy if that would change them. Without data
    they are generated.
    """
    if data is None:
        images_NHWC, name = parity_images(bundle, None)
        return [
            Golden(data=data, extension=extension, label=None, source=name)
            for data, extension in (_encoded(_as_given(image, bundle), bundle) for image in images_NHWC[:count])
        ]
    source, split_name, cached = open_split(bundle, data, cache_dir=cache_dir, on_bad_image="skip")
    split = source.splits[split_name]
    places = {name: place for place, name in enumerate(split.names)}
    # of the cache: images that the audit left out are not among them
    rows = np.array([places[name] for name in cached.names], dtype=np.int64)
    return [_golden(split, row, source.group_names, bundle) for row in _evenly(split, rows, count)]


def _as_given(pixels: np.ndarray, bundle: Bundle) -> np.ndarray:
    """Pixels as the network sees them, in the dtype in which images are given."""
    return pixels.astype(bundle.preprocess.pixels)


def _encoded(pixels: np.ndarray, bundle: Bundle) -> tuple[bytes, str]:
    """(a file that gives these very pixels, its extension)."""
    buffer = io.BytesIO()
    if bundle.preprocess.is_raw:
        np.save(buffer, pixels, allow_pickle=False)
        return buffer.getvalue(), ".npy"
    image_of(pixels).save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def _evenly(split: Split, rows: np.ndarray, wanted: int) -> list[int]:
    """`wanted` of the rows, class by class; where there are more classes than that, some evenly spread ones."""
    labels = np.unique(split.labels[rows])
    if len(labels) > wanted:
        labels = labels[np.linspace(0, len(labels) - 1, wanted).round().astype(int)]
    counts = [wanted // len(labels) + (place < wanted % len(labels)) for place in range(len(labels))]
    chosen: list[int] = []
    for label, count in zip(labels, counts, strict=True):
        own = rows[split.labels[rows] == label]
        small = own
        if split.paths is not None:
            small = np.array([row for row in own if _size(split.paths[row]) <= MAX_FILE_BYTES], dtype=np.int64)
        own = small if len(small) else own
        chosen += [int(row) for row in own[np.unique(np.linspace(0, len(own) - 1, min(count, len(own))).astype(int))]]
    return chosen


def _size(path: str) -> int:
    return Path(path).stat().st_size


def _golden(split: Split, row: int, classes: Sequence[str], bundle: Bundle) -> Golden:
    label = classes[split.labels[row]]
    if split.paths is not None:
        path = Path(split.paths[row])
        return Golden(data=read_bytes(path), extension=path.suffix.lower(), label=label, source=split.names[row])
    if split.items is not None:
        data = split.items.read(row)
        if not isinstance(data, bytes):
            file, extension = _encoded(data, bundle)
            return Golden(data=file, extension=extension, label=label, source=split.names[row])
        # it was decoded, so its format is known
        extension = FORMATS[sniff(data[:HEAD_BYTES]) or "PNG"][0]
        return Golden(data=data, extension=extension, label=label, source=split.names[row])
    assert split.arrays is not None
    file, extension = _encoded(split.arrays[row], bundle)
    return Golden(data=file, extension=extension, label=label, source=split.names[row])


def write_goldens(
    folder: Path,
    goldens: Sequence[Golden],
    images_NHWC: np.ndarray,
    *,
    pytorch_NK: np.ndarray,
    deployed_NK: np.ndarray,
    precision: str,
    where: dict[str, Any],
) -> None:
    """Write the images, their pixels as the network sees them (NN.u8), the answers (NN.f32), and golden.json.

    Pixels of float32 are in NN.pixels.f32, little-endian.

    deployed_NK: of the variant that is deployed; .f32 holds them, float32, little-endian. where: on which machine.
    """
    folder.mkdir()
    rows = []
    for number, (golden, pixels, pytorch_K, deployed_K) in enumerate(
        zip(goldens, images_NHWC, pytorch_NK, deployed_NK, strict=True)
    ):
        name = f"{number:02d}"
        slug = re.sub(r"[^A-Za-z0-9]+", "-", golden.label or golden.source).strip("-")
        file = f"{name}-{slug}{golden.extension}"
        (folder / file).write_bytes(golden.data)
        seen = f"{name}.u8" if pixels.dtype == np.uint8 else f"{name}.pixels.f32"
        (folder / seen).write_bytes(pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
        (folder / f"{name}.f32").write_bytes(deployed_K.astype("<f4").tobytes())
        rows.append(
            {
                "file": file,
                "pixels": seen,
                "probs": f"{name}.f32",
                "label": golden.label,
                "source": golden.source,
                "pytorch": [float(value) for value in pytorch_K],
                "deployed": [float(value) for value in deployed_K],
            }
        )
    tolerance = TOLERANCE.get(precision, INT8_REPEAT_TOLERANCE)
    record = {
        "shape": list(images_NHWC.shape[1:]),
        # how far 8 bits may be from PyTorch has no bound for a single image: its proof is in accuracy
        "tolerance": {"deployed": tolerance, "pytorch": TOLERANCE.get(precision)},
        "where": where,
        "images": rows,
    }
    (folder / "golden.json").write_text(json.dumps(record, indent=1, ensure_ascii=True) + "\n")
    # for programs that read no JSON
    (folder / "tolerance.txt").write_text(f"{tolerance}\n")
