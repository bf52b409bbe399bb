"""Reduces more than 8 bits per channel to 8, by one rule for every format.

White is the value that the file declares, if it declares a depth (a 12-bit TIFF, MaxSampleValue 4095). Otherwise it is
the first of 1, 15, 255, 4095, 65535, ... (16^k - 1) that no value exceeds. The steps are wide so that images with
different exposure get the same white, and so that at least 16 tones remain above black.
Black is 0, or minus white if there are negative values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["STRIP", "Depth", "combined", "eight_bit", "grey_alpha", "range_of", "tops_of"]

LADDER = (1, *(16**power - 1 for power in range(1, 9)))
# resampling overshoots: floats may exceed a step by a tenth and are clipped
OVERSHOOT = 0.1
# values of this size mean "no data" in maps
MISSING = 1e30
# pixels converted at once: few enough to fit in a CPU's cache
STRIP = 1 << 17


@dataclass(frozen=True)
class Depth:
    """What a file declares about its values."""

    white: int | None = None
    """2^k - 1 if it declares a depth of k bits."""
    unsigned: bool = False
    """32-bit integers are unsigned; Pillow assumes signed."""
    signed: bool = False
    """8-bit integers are signed; Pillow assumes unsigned."""
    inverted: bool = False
    """0 is white."""
    missing: float | None = None
    """The value that means no data."""


def range_of(low: float, high: float, white: int | None = None, slack: float = 0.0) -> tuple[int, int]:
    """(black, white) for values from `low` to `high`.

    white: as declared by the file; ignored if a value exceeds it. slack: relative excess over a step that is clipped.
    """
    top = LADDER[-1]
    if white is None or max(high, -low) > white:
        reach = max(high, -low if low < -slack * max(high, 0) else 0)
        white = next((step for step in LADDER if reach <= step * (1 + slack)), top)
    return (-white if low < -slack * white else 0), white


def eight_bit(image: Image.Image, depth: Depth = Depth()) -> tuple[Image.Image, int]:
    """(8-bit grey image, white) of an image with one channel: mode I;16, I, F, or L with signed values."""
    floats = image.mode == "F"
    low, high = np.inf, -np.inf
    for _, values in _strips(image, depth):
        known = values[np.isfinite(values)] if floats else values
        if known.size:
            low, high = min(low, known.min()), max(high, known.max())
    if low > high:
        low = high = 0
    black, white = range_of(float(low), float(high), depth.white, OVERSHOOT if floats else 0.0)
    result = Image.new("L", image.size)
    scale = _scale_floats if floats else _scale_integers
    for top, values in _strips(image, depth):
        tones = scale(values, black, white)
        result.paste(Image.fromarray(255 - tones if depth.inverted else tones), (0, top))
    return result, white


def _strips(image: Image.Image, depth: Depth) -> Iterator[tuple[int, np.ndarray]]:
    """(top row, values) of strips of rows: a copy of the whole image may not fit in memory."""
    width, height = image.size
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        values = np.asarray(image.crop((0, top, width, min(height, top + rows))))
        if image.mode == "F":
            values = np.where(np.abs(values) < MISSING, values, np.nan)
            if depth.missing is not None:
                values[values == np.float32(depth.missing)] = np.nan
        elif depth.unsigned and values.dtype == np.int32:
            values = values.view(np.uint32)
        elif depth.signed and values.dtype == np.uint8:
            values = values.view(np.int8)
        yield top, values


def _scale_integers(values: np.ndarray, black: int, white: int) -> np.ndarray:
    if white == 1 and black == 0:
        return np.where(values > 0, 255, 0).astype(np.uint8)
    # the same number of values for each tone: 16 bits are divided by 256
    if black < 0:
        wide = np.clip(values.astype(np.int64), black - 1, white)
        return ((wide + white + 1) * 128 // (white + 1)).astype(np.uint8)
    # no value exceeds white, which is 2^k - 1
    bits = white.bit_length()
    return (values >> (bits - 8)).astype(np.uint8) if bits >= 8 else values.astype(np.uint8) << (8 - bits)


def _scale_floats(values: np.ndarray, black: int, white: int) -> np.ndarray:
    wide = np.clip(np.nan_to_num(values.astype(np.float64), nan=black), black, white)
    return np.rint((wide - black) * (255 / (white - black))).astype(np.uint8)


def combined(high: Image.Image, low: Image.Image, white: int | None = None) -> tuple[Image.Image, int]:
    """(8-bit image, white) of an image with 16 bits per channel, given as its high and low bytes.

    Alpha is scaled by its own white. Overwrites `high` with the result: a third image may not fit in memory.
    """
    names = high.getbands()
    colours = [index for index, name in enumerate(names) if name not in "Aa"]
    tops = [top << 8 | (255 if top else below) for top, below in zip(tops_of(high), tops_of(low), strict=True)]
    _, white = range_of(0, max(tops[index] for index in colours), white)
    whites = [white if index in colours else range_of(0, tops[index])[1] for index in range(len(names))]
    for (top, upper), (_, lower) in zip(_strips(high, Depth()), _strips(low, Depth()), strict=True):
        high.paste(Image.fromarray(_tones(upper, lower, whites), mode=high.mode), (0, top))
    return high, white


def grey_alpha(image: Image.Image) -> tuple[Image.Image, int]:
    """(8-bit LA image, white) of 16-bit grey and alpha, given as four channels: high and low byte of each."""
    tops = tops_of(image)
    whites = [range_of(0, tops[at] << 8 | (255 if tops[at] else tops[at + 1]))[1] for at in (0, 2)]
    result = Image.new("LA", image.size)
    for top, values in _strips(image, Depth()):
        tones = _tones(values[..., ::2], values[..., 1::2], whites)
        result.paste(Image.fromarray(tones, mode="LA"), (0, top))
    return result, whites[0]


def tops_of(image: Image.Image) -> list[int]:
    """The highest value of each channel of an 8-bit image."""
    # not Pillow's getextrema, which is slower because it makes an image of each channel
    found = [values.max(0).max(0) for _, values in _strips(image, Depth())]
    return [int(top) for top in np.max(found, 0)]


def _tones(upper: np.ndarray, lower: np.ndarray, whites: list[int]) -> np.ndarray:
    """uint8 [H, W, C] of 16-bit values, given as high and low bytes [H, W, C] and a white for each channel."""
    if len(set(whites)) == 1:
        return _scale_integers(upper.astype(np.uint16) << 8 | lower, 0, whites[0])
    tones = np.empty(upper.shape, np.uint8)
    for at, white in enumerate(whites):
        tones[..., at] = _scale_integers(upper[..., at].astype(np.uint16) << 8 | lower[..., at], 0, white)
    return tones
