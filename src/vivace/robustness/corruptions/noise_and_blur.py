"""Noise and blur: seven of the common corruptions (arXiv:1903.12261, appendix B).

Each takes images_BCHW float32 in [0, 1], the constants of a severity and the random numbers, and gives images of the
same shape, in [0, 1] up to rounding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivace.robustness.corruptions.draws import Draws
from vivace.robustness.corruptions.sampling import (
    along_axes,
    border_index,
    filter_matrix,
    filtered,
    gaussian_blurred,
    gaussian_weights,
    zoom_matrix,
)

__all__ = [
    "as_levels",
    "defocus_blur",
    "gaussian_noise",
    "glass_blur",
    "impulse_noise",
    "motion_blur",
    "moved_along",
    "shot_noise",
    "zoom_blur",
]

# a level that rounding puts just below a whole number is that number
NEARLY = 1e-3


def as_levels(images: Tensor) -> Tensor:
    """uint8 of images in [0, 1]: truncated, as published."""
    return (images.clamp(0, 1) * 255 + NEARLY).to(torch.uint8)


def gaussian_noise(images_BCHW: Tensor, sigma: float, draws: Draws) -> Tensor:
    """sigma: of the noise, on the scale of the pixels."""
    return images_BCHW + sigma * draws.normal(*images_BCHW.shape)


def shot_noise(images_BCHW: Tensor, photons: float, draws: Draws) -> Tensor:
    """photons: counted where a pixel is white."""
    return draws.poisson(images_BCHW * photons) / photons


def impulse_noise(images_BCHW: Tensor, amount: float, draws: Draws) -> Tensor:
    """amount: fraction of the values that become 0 or 1, channel by channel."""
    hit, white = draws.uniform(*images_BCHW.shape) <= amount, draws.uniform(*images_BCHW.shape) <= 0.5
    return torch.where(hit, white.to(images_BCHW.dtype), images_BCHW)


def defocus_blur(images_BCHW: Tensor, disk: tuple[float, float], draws: Draws) -> Tensor:
    """disk: its radius in px, and the sigma in px by which its rim is softened."""
    return filtered(images_BCHW, _disk(*disk))


def _disk(radius: float, sigma: float) -> np.ndarray:
    reach, softened = (8, 1) if radius <= 8 else (int(radius), 2)
    places = np.arange(-reach, reach + 1)
    disk = (places[:, None] ** 2 + places[None] ** 2 <= radius**2).astype(np.float64)
    soften = filter_matrix(2 * reach + 1, gaussian_weights(sigma, softened), "mirror")
    kernel: np.ndarray = soften @ (disk / disk.sum()) @ soften.T
    return kernel


def glass_blur(images_BCHW: Tensor, glass: tuple[float, int, int], draws: Draws) -> Tensor:
    """glass: sigma of the blur in px, the farthest that a pixel moves, and how often.

    Pixel after pixel, from the last to the first, takes the value of one nearby. The published code means to swap the
    two, but copies: both assignments see the first pixel's new value. So an image here is what that code makes.
    """
    sigma, reach, repeats = glass
    levels = as_levels(gaussian_blurred(images_BCHW, sigma)).to(images_BCHW.dtype) / 255
    for _ in range(repeats):
        levels = levels.flatten(2).gather(2, _sources(levels, reach, draws)).view_as(levels)
    return gaussian_blurred(levels, sigma)


def _sources(images_BCHW: Tensor, reach: int, draws: Draws) -> Tensor:
    """[B, C, H * W] int64: the pixel whose value arrives at each one, of those that take values in turn.

    A pixel that takes the value of one that had its turn before takes what that one took. These chains are followed for
    all pixels at once, in steps that double.
    """
    batch, channels, height, width = images_BCHW.shape
    size, device = height * width, images_BCHW.device
    rows = torch.arange(height - reach, reach, -1, device=device)
    columns = torch.arange(width - reach, reach, -1, device=device)
    steps = draws.integers(-reach, reach, batch, len(rows), len(columns), 2)
    places = (rows[:, None] * width + columns).expand(batch, -1, -1)
    taken = (rows[:, None] + steps[..., 1]) * width + columns + steps[..., 0]
    # nodes 0 … size - 1 are pixels before the pass, the others are the same pixels after it
    turn = torch.zeros(size, dtype=torch.bool, device=device)
    turn[places[0].flatten()] = True
    had_turn = turn[taken] & (taken > places)
    follow = torch.arange(2 * size, device=device).repeat(batch, 1)
    follow[:, size:] -= size
    follow.scatter_(1, (places + size).flatten(1), torch.where(had_turn, taken + size, taken).flatten(1))
    while bool((follow >= size).any()):
        follow = follow.gather(1, follow)
    return follow[:, None, size:].expand(-1, channels, -1)


def motion_blur(images_BCHW: Tensor, motion: tuple[float, float], draws: Draws) -> Tensor:
    """motion: half the length of the trail in px, and its sigma; each image in a direction within 45° of the rows."""
    angles_B = 90 * draws.uniform(len(images_BCHW)) - 45
    return moved_along(images_BCHW, *motion, angles_B)


def moved_along(images_BCHW: Tensor, radius: float, sigma: float, angles_B: Tensor) -> Tensor:
    """The means along a trail to one side, weighted by half a Gaussian, as ImageMagick's motion blur takes them.

    radius, sigma: px. angles_B: degrees. Beyond an edge stand its pixels.
    """
    height, width = images_BCHW.shape[-2:]
    device, length = images_BCHW.device, 2 * math.ceil(radius) + 1
    weights = np.exp(-0.5 * (np.arange(length) / sigma) ** 2)
    weights /= weights.sum()
    # in float64, on the CPU: where a step lies just between two pixels, rounding decides
    turns = torch.deg2rad(angles_B.double().cpu())
    down, right = turns.sin(), turns.cos()
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    flat, blurred = images_BCHW.flatten(2), torch.zeros_like(images_BCHW)
    inside = torch.ones(len(images_BCHW), dtype=torch.bool)
    for step, weight in enumerate(weights):
        row_steps, column_steps = (torch.ceil(step * side - 0.5).long() for side in (down, right))
        # a trail that leaves the image ends there
        inside &= (row_steps.abs() < height) & (column_steps.abs() < width)
        seen_rows = border_index(rows + row_steps.to(device)[:, None], height, "nearest")
        seen_columns = border_index(columns + column_steps.to(device)[:, None], width, "nearest")
        index = (seen_rows[:, :, None] * width + seen_columns[:, None]).flatten(1)[:, None]
        moved = flat.gather(2, index.expand(-1, flat.shape[1], -1)).view_as(images_BCHW)
        blurred += (weight * inside.to(device))[:, None, None, None].to(moved.dtype) * moved
    return blurred


def zoom_blur(images_BCHW: Tensor, zooms: Any, draws: Draws) -> Tensor:
    """zooms: the enlargements whose mean is taken, together with the image itself."""
    height, width = images_BCHW.shape[-2:]
    total = images_BCHW.clone()
    for factor in zooms:
        total += along_axes(images_BCHW, zoom_matrix(height, factor), zoom_matrix(width, factor))
    return total / (len(zooms) + 1)
