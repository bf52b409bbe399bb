"""Cropping and resizing of photos with Pillow's pixels to the last bit, faster than Pillow."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vivace.errors import KernelError

__all__ = ["can_resize", "resize_square", "use_fast_resize"]

Box = tuple[int, int, int, int]
# (height, width, side) → whether columns are shortened before rows are
Order = Callable[[int, int, int], bool]

POINTER, INT = ctypes.c_void_p, ctypes.c_int32
# as resize.c numbers them
KINDS = {"bilinear": 0, "bicubic": 1}
# height and width of images and sides that they are resized to, whatever their shape: to compare with Pillow
CHECKED = (((61, 83), 24), ((61, 83), 97), ((90, 31), 20), ((90, 31), 60), ((90, 31), 97), ((70, 64), 40))

_folder: Path | None = None


def use_fast_resize(folder: Path) -> None:
    """From now on, `resize_square` works in this process, by a kernel kept in `folder` and built at first use.

    If it can't be built, or its pixels differ from those of the installed Pillow, nothing changes.
    """
    global _folder
    _folder = folder


def resize_square(pixels_HWC: np.ndarray, box: Box, side: int, interpolation: str) -> np.ndarray | None:
    """uint8 [side, side, C] of the box (left, top, right, bottom) of uint8 [H, W, C], C 1 or 3.

    None where `use_fast_resize` was not called, or did not help, or the interpolation is not bilinear or bicubic.
    """
    kernel = None if _folder is None else _kernel(_folder, interpolation)
    return None if kernel is None else kernel(pixels_HWC, box, side)


def can_resize(folder: Path) -> bool:
    """Whether the kernel kept in `folder` can be built and gives the pixels of the installed Pillow."""
    return all(_kernel(folder, interpolation) for interpolation in KINDS)


def _always_across(height: int, width: int, side: int) -> bool:
    return False


def _down_if_tall(height: int, width: int, side: int) -> bool:
    # as Pillow 13.0 does; found by trying sizes, and checked before it is relied on
    return height > side and height - side > 2 * (width - side)


@functools.cache
def _kernel(folder: Path, interpolation: str) -> Callable[[np.ndarray, Box, int], np.ndarray] | None:
    """What resizes, with the order of its two passes as in the installed Pillow; None if there is none."""
    if interpolation not in KINDS:
        return None
    # most processes that decode use no kernel
    from vivace.kernels.build import load_library, say_unused
    from vivace.trust import say_once

    try:
        library = load_library("resize", folder)
    except KernelError as error:
        say_unused("resize", error)
        return None
    library.resize.argtypes = [POINTER, INT, INT, INT, ctypes.POINTER(INT), POINTER, INT, INT, INT]
    kind = KINDS[interpolation]
    for order in (_down_if_tall, _always_across):
        kernel = functools.partial(_resize, library, kind, order)
        if _agrees(kernel, interpolation):
            return kernel
    say_once("the kernel in resize.c is not used, Pillow does its work: its pixels are not those of this Pillow.")
    return None


def _agrees(kernel: Callable[[np.ndarray, Box, int], np.ndarray], interpolation: str) -> bool:
    """Whether the pixels are Pillow's: a Pillow with other build flags may round its weights differently."""
    rng, resampling = np.random.default_rng(0), Image.Resampling[interpolation.upper()]
    for (height, width), side in CHECKED:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        square = min(height, width)
        left, top = (width - square) // 2, (height - square) // 2
        for box in ((left, top, left + square, top + square), (0, 0, width, height)):
            resized = Image.fromarray(pixels).resize((side, side), resampling, box=box)
            if not np.array_equal(kernel(pixels, box, side), np.asarray(resized)):
                return False
    return True


def _resize(library: ctypes.CDLL, kind: int, order: Order, pixels_HWC: np.ndarray, box: Box, side: int) -> np.ndarray:
    pixels_HWC = np.ascontiguousarray(pixels_HWC)
    height, width, channels = pixels_HWC.shape
    out = np.empty((side, side, channels), dtype=np.uint8)
    failed = library.resize(
        pixels_HWC.ctypes.data,
        height,
        width,
        channels,
        (INT * 4)(*box),
        out.ctypes.data,
        side,
        kind,
        order(height, width, side),
    )
    if failed:
        raise MemoryError
    return out
