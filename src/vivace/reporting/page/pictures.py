"""Small WebP images for a page, as data URIs, and which of them are worth their bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vivace.metrics.measured import Measured, confused_pairs, worst_labels, worst_mistakes
from vivace.reporting.page.facts import Picture
from vivace.reporting.page.reading import clean
from vivace.screen import shown_pixels

__all__ = ["Chosen", "choose", "choose_of_sets", "encoded", "pictures"]

# px; what is smaller stays as it is
SIDE = 128
# up to this side an image is stored without loss, and shown in large pixels
MAX_CRISP = 48
QUALITY = 66
# encoding one takes a millisecond
NUM_MISTAKES, NUM_PAIRS, NUM_RIGHT = 24, 90, 40
MIN_PER_PAIR, MAX_PER_PAIR, MAX_PER_RIGHT = 2, 8, 3
# of all images of a page, encoded; a page has 3 MB
MAX_BYTES = 1_500_000


@dataclass(frozen=True)
class Chosen:
    """Images worth showing, by their positions."""

    mistakes: tuple[int, ...]
    pairs: dict[tuple[int, int], tuple[int, ...]]
    """(true, predicted) → some of these images."""


def choose(measured: Measured) -> Chosen:
    """The most confident mistakes, and a few images of each pair of classes, mistakes and frequent pairs first."""
    groups = confused_pairs(measured.probs_NK, measured.labels_N)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] == item[0][1], -len(item[1]), item[0]))
    # a few images of many pairs, or more of few
    num_wrong = sum(pair[0] != pair[1] for pair in groups)
    most = {False: max(MIN_PER_PAIR, min(MAX_PER_PAIR, NUM_PAIRS // max(num_wrong, 1))), True: MAX_PER_RIGHT}
    left = {False: NUM_PAIRS, True: NUM_RIGHT}
    pairs = {}
    for pair, rows in ordered:
        right = pair[0] == pair[1]
        taken = rows[: min(most[right], left[right])]
        left[right] -= len(taken)
        if len(taken):
            pairs[pair] = tuple(taken.tolist())
    worst = worst_mistakes(measured.probs_NK, measured.labels_N)[:NUM_MISTAKES]
    return Chosen(tuple(worst.tolist()), pairs)


def choose_of_sets(measured: Measured, thresholds_K: Sequence[float]) -> dict[int, tuple[int, float]]:
    """position → (label, confidence) of the most confident wrong label of an image, the worst first."""
    assert measured.hits_NK is not None
    found = worst_labels(measured.probs_NK, measured.hits_NK, thresholds_K)
    return {row: (label, confidence) for row, label, confidence in found[:NUM_MISTAKES]}


def pictures(
    measured: Measured,
    told: Iterable[tuple[int, str, str, float]],
    spent: list[int],
    heat: Mapping[int, np.ndarray] | None = None,
) -> dict[int, Picture]:
    """position → picture, for (position, label, predicted, probability); none is made beyond MAX_BYTES in all.

    spent: the bytes so far, a list of one number, which is added to. heat: position → the image under its heat map,
    uint8 [H, W, 3].
    """
    rows = list({row[0]: row for row in told}.values())
    if not rows:
        return {}
    pixels = measured.images(np.asarray([row[0] for row in rows], dtype=np.int64))
    made = {}
    for (position, label, predicted, probability), image in zip(rows, pixels, strict=True):
        uri, width, height, crisp = encoded(image)
        warm = None if heat is None or position not in heat else encoded(heat[position])[0]
        spent[0] += len(uri) + len(warm or "")
        if spent[0] > MAX_BYTES:
            break
        made[position] = Picture(
            uri=uri,
            width=width,
            height=height,
            crisp=crisp,
            name=clean(_told(measured.names[position]), 200),
            label=label,
            predicted=predicted,
            percent=100 * probability,
            heat=warm,
        )
    return made


def _shown(image_HWC: np.ndarray) -> np.ndarray:
    """What a person sees of an image of any type and number of channels: uint8 [H, W] or [H, W, 3].

    Of more than three channels the first three; what is no uint8 is stretched from its darkest to its brightest value.
    """
    some = image_HWC[..., :3] if image_HWC.shape[-1] >= 3 else image_HWC[..., 0]
    if some.dtype == np.uint8:
        return np.ascontiguousarray(some)
    values = np.nan_to_num(some.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    shown: np.ndarray = (255 * (values - low) / max(high - low, 1e-12)).clip(0, 255).astype(np.uint8)
    return shown


def encoded(image_HWC: np.ndarray) -> tuple[str, int, int, bool]:
    """(data URI, width, height, whether it is small)."""
    image_HWC = shown_pixels(image_HWC)
    picture = Image.fromarray(_shown(image_HWC))
    crisp = max(picture.size) <= MAX_CRISP
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    # method: effort, 0 to 6; of photos of this size 2 saves all but a hundredth of the bytes
    picture.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=2, lossless=crisp)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return uri, picture.width, picture.height, crisp


def _told(name: str) -> str:
    """Of a name that a table has as a whole path its folder and file: where they lie is nobody's business."""
    return "/".join(name.split("/")[-2:]) if name.startswith("/") else name
