"""Grey thumbnails of stored images, their eight symmetries, and a short descriptor of each (no torch here).

N images, S the side of stored images, T = SIDE that of thumbnails, K = FREQUENCIES, D = K² - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from vivace.data.caching.stored import Pixels
from vivace.data.decoding.square import PAD

__all__ = ["SIDE", "SYMMETRIES", "Symmetry", "cosines", "described", "grey_thumbnails", "turned", "turned_cosines"]

# px: the details that resizing to half of CIFAR-10's 32 px leaves; smaller thumbnails no longer tell look-alikes apart
SIDE = 32
# of the cosine transform, in each direction: 63 numbers found more of the cropped copies than 35, 99 or 143 did
FREQUENCIES = 8
# ITU-R 601, as `Preprocess` turns colours grey
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
CHUNK = 500

# (transposed, sign of the vertical frequencies, of the horizontal ones): the eight ways to lay a square
Symmetry = tuple[bool, int, int]
SYMMETRIES: tuple[Symmetry, ...] = tuple((t, a, b) for t in (False, True) for a in (1, -1) for b in (1, -1))


def grey_thumbnails(
    images_NSSC: Pixels, *, padded: bool = False, progress: Callable[[int], None] = lambda count: None
) -> np.ndarray:
    """The images in grey, float16 [N, T, T], on the scale of their dtype from 0 to 255.

    Of float32 images, whose scale is not known, the smallest and largest mean pixel are 0 and 255. padded: margins of
    the grey that `Preprocess` pads with are cut off, as they would make all images of one shape alike. progress: called
    with the number of images read.
    """
    made = np.zeros((len(images_NSSC), SIDE, SIDE), np.float16 if images_NSSC.dtype == np.uint8 else np.float32)
    shrink = _averaging(images_NSSC.shape[1], SIDE)
    for start in range(0, len(images_NSSC), CHUNK):
        block = images_NSSC[start : start + CHUNK]
        if padded:
            made[start : start + len(block)] = [_content(image) for image in block]
        else:
            made[start : start + len(block)] = shrink @ _grey(block) @ shrink.T
        progress(len(block))
    if made.dtype == np.float32 and made.size:
        made = np.nan_to_num(made, posinf=0, neginf=0)
        low, high = (0, 65535) if images_NSSC.dtype == np.uint16 else (float(made.min()), float(made.max()))
        made = ((made - low) * (255 / max(high - low, 1e-20))).astype(np.float16)
    return made


def _grey(images: np.ndarray) -> np.ndarray:
    values = images.astype(np.float32)
    return values @ LUMA if images.shape[-1] == 3 and images.dtype == np.uint8 else values.mean(-1)


def _content(image_SSC: np.ndarray) -> np.ndarray:
    """The thumbnail of a padded image without its margins."""
    inside = (image_SSC != PAD).any(-1)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return np.full((SIDE, SIDE), PAD, np.float32)
    grey = _grey(image_SSC[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return _averaging(grey.shape[0], SIDE) @ grey @ _averaging(grey.shape[1], SIDE).T


@cache
def _averaging(old: int, new: int) -> np.ndarray:
    """float32 [new, old], rows of weights: the mean over the part of the old pixels that a new pixel covers."""
    edges = np.linspace(0, old, new + 1)
    low, high = edges[:-1, None], edges[1:, None]
    place = np.arange(old)
    covered = np.clip(np.minimum(high, place + 1) - np.maximum(low, place), 0, None)
    return (covered / covered.sum(1, keepdims=True)).astype(np.float32)


def turned(thumbnails: np.ndarray, symmetry: Symmetry) -> np.ndarray:
    """Thumbnails [..., T, T] laid by a symmetry."""
    transposed, vertical, horizontal = symmetry
    made = thumbnails.swapaxes(-1, -2) if transposed else thumbnails
    return made[..., ::vertical, ::horizontal]


def cosines(thumbnails_NTT: np.ndarray) -> np.ndarray:
    """The lowest frequencies of the cosine transform, float32 [N, K, K]; the first, which is brightness, is 0."""
    basis = _basis(thumbnails_NTT.shape[-1])
    made = basis @ thumbnails_NTT.astype(np.float32) @ basis.T
    made[:, 0, 0] = 0
    return made


@cache
def _basis(side: int) -> np.ndarray:
    angles = np.pi * (np.arange(side) + 0.5) / side
    return (np.cos(np.arange(FREQUENCIES)[:, None] * angles) * np.sqrt(2 / side)).astype(np.float32)


def turned_cosines(cosines_NKK: np.ndarray, symmetry: Symmetry) -> np.ndarray:
    """`cosines` of the turned thumbnails: mirroring changes the sign of the odd frequencies, and nothing else."""
    transposed, vertical, horizontal = symmetry
    made = cosines_NKK.swapaxes(-1, -2) if transposed else cosines_NKK
    odd = np.arange(made.shape[-1]) % 2
    signs: Any = np.where(odd, vertical, 1)[:, None] * np.where(odd, horizontal, 1)
    return made * signs.astype(np.float32)


def described(cosines_NKK: np.ndarray) -> np.ndarray:
    """Descriptors of unit length, float32 [N, D]: independent of brightness and contrast."""
    flat = cosines_NKK.reshape(len(cosines_NKK), -1)[:, 1:]
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
