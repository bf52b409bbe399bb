"""Thumbnails scaled and shifted along both axes, by linear interpolation (no torch here).

B pairs, T px; places run from -1 to 1 over an image. A warp is (scale x, shift x, scale y, shift y): the pixel at u of
the result is that at scale · u + shift.
"""

from __future__ import annotations

import numpy as np

__all__ = ["places", "warp", "warped"]


def places(side: int) -> np.ndarray:
    """Where pixels lie, float32 [T]."""
    return ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32)


def _interpolation(scale_B: np.ndarray, shift_B: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(weights [B, T, T] of old pixels in new ones, [B, T]: 1 where a new pixel lies inside the old image)."""
    at = ((scale_B[:, None] * places(side) + shift_B[:, None]) + 1) / 2 * side - 0.5
    inside = (at > -0.51) & (at < side - 0.49)
    # beyond the border the outermost pixel is repeated
    distance = np.abs(np.clip(at, 0, side - 1)[:, :, None] - np.arange(side, dtype=np.float32))
    return np.maximum(0, 1 - distance), inside.astype(np.float32)


def warp(images_BTT: np.ndarray, warps_B4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(warped images float32 [B, T, T], [B, T, T]: 1 where they show the old image and not its repeated border)."""
    side = images_BTT.shape[-1]
    across, inside_x = _interpolation(warps_B4[:, 0], warps_B4[:, 1], side)
    down, inside_y = _interpolation(warps_B4[:, 2], warps_B4[:, 3], side)
    return down @ images_BTT @ across.transpose(0, 2, 1), inside_y[:, :, None] * inside_x[:, None, :]


def warped(images_BTT: np.ndarray, scale: float) -> np.ndarray:
    """All images scaled about their centres, float32 [B, T, T]."""
    weights, _ = _interpolation(np.array([scale], np.float32), np.array([0], np.float32), images_BTT.shape[-1])
    return weights[0] @ images_BTT.astype(np.float32) @ weights[0].T
