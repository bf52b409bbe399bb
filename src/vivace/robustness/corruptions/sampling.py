"""Filters and resampling of whole batches, with the borders of the libraries that published corruptions use.

Shapes: B images, C channels, H rows, W columns. A filter along one axis is a matrix that holds the border's rule too:
a Gaussian of 170 px costs no more than one of 1 px.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "along_axes",
    "bilinear_at",
    "border_index",
    "box_matrix",
    "filter_matrix",
    "filtered",
    "gaussian_blurred",
    "gaussian_weights",
    "zoom_matrix",
]

# what lies beyond an edge of a b c d: "nearest" a|a, "reflect" b a|a b, "mirror" c b|a b (OpenCV's REFLECT_101)
BORDERS = ("nearest", "reflect", "mirror")


def border_index(index: Tensor, size: int, border: str) -> Tensor:
    """The pixel that stands at each position, int64, however far outside of 0 … size - 1 it lies."""
    if border == "nearest" or size == 1:
        return index.clamp(0, size - 1)
    period = 2 * size if border == "reflect" else 2 * (size - 1)
    folded = index.remainder(period)
    return torch.minimum(folded, period - 1 - folded if border == "reflect" else period - folded)


def gaussian_weights(sigma: float, radius: int) -> np.ndarray:
    """float64 [2 radius + 1], sum 1."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    normalised: np.ndarray = weights / weights.sum()
    return normalised


def filter_matrix(size: int, weights: np.ndarray, border: str) -> np.ndarray:
    """float64 [size, size]: the filter along an axis of `size` px; weights: of odd length, centred."""
    radius = len(weights) // 2
    matrix = np.zeros((size, size))
    for offset, weight in zip(range(-radius, radius + 1), weights, strict=True):
        seen = border_index(torch.arange(size) + offset, size, border).numpy()
        np.add.at(matrix, (np.arange(size), seen), weight)
    return matrix


def zoom_matrix(size: int, factor: float) -> np.ndarray:
    """float64 [size, size]: the central pixels, enlarged by `factor` >= 1, linear between pixels; no border is seen.

    Of the central ceil(size / factor) pixels the first and last stay at the ends of the enlarged row, of which the
    middle is kept.
    """
    kept = math.ceil(size / factor)
    start, enlarged = (size - kept) // 2, round(kept * factor)
    places = np.arange(enlarged) * ((kept - 1) / max(enlarged - 1, 1))
    places = places[(enlarged - size) // 2 :][:size]
    lower = np.clip(np.floor(places).astype(int), 0, kept - 1)
    upper, part = np.minimum(lower + 1, kept - 1), places - lower
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size), start + lower), 1 - part)
    np.add.at(matrix, (np.arange(size), start + upper), part)
    return matrix


def box_matrix(size: int, target: int) -> np.ndarray:
    """float64 [target, size]: Pillow's resampling by BOX, which gives a pixel the mean of those below it."""
    scale = size / target
    support = max(scale, 1.0) / 2
    matrix = np.zeros((target, size))
    for row in range(target):
        centre = (row + 0.5) * scale
        first, end = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), size)
        distances = (np.arange(first, end) - centre + 0.5) / max(scale, 1.0)
        inside = (distances > -0.5) & (distances <= 0.5)
        matrix[row, first:end] = inside / inside.sum()
    return matrix


def along_axes(images_BCHW: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """The images with one matrix applied along their rows and one along their columns."""
    left, right = (torch.from_numpy(matrix).to(images_BCHW) for matrix in (rows, columns))
    return left @ images_BCHW @ right.T


def gaussian_blurred(images_BCHW: Tensor, sigma: float, *, border: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Blurred by a Gaussian of `sigma` px, cut off at `truncate` sigma, as scipy.ndimage does."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return images_BCHW
    weights = gaussian_weights(sigma, radius)
    height, width = images_BCHW.shape[-2:]
    return along_axes(images_BCHW, filter_matrix(height, weights, border), filter_matrix(width, weights, border))


def filtered(images_BCHW: Tensor, kernel: np.ndarray) -> Tensor:
    """Correlated with a square kernel of odd side, borders mirrored (OpenCV's filter2D)."""
    radius = kernel.shape[0] // 2
    while radius and not kernel[0].any() and not kernel[-1].any() and not kernel[:, [0, -1]].any():
        kernel, radius = kernel[1:-1, 1:-1], radius - 1
    batch, channels, height, width = images_BCHW.shape
    rows = border_index(torch.arange(-radius, height + radius), height, "mirror")
    columns = border_index(torch.arange(-radius, width + radius), width, "mirror")
    padded = images_BCHW[:, :, rows.to(images_BCHW.device)][:, :, :, columns.to(images_BCHW.device)]
    weights = torch.as_tensor(kernel, dtype=padded.dtype, device=padded.device)[None, None]
    out: Tensor = functional.conv2d(padded.flatten(0, 1)[:, None], weights)
    return out.view(batch, channels, height, width)


def bilinear_at(images_BCHW: Tensor, rows_BHW: Tensor, columns_BHW: Tensor, border: str) -> Tensor:
    """The images at other places, in px, linear between pixels."""
    height, width = images_BCHW.shape[-2:]
    top, left = rows_BHW.floor(), columns_BHW.floor()
    down, right = (rows_BHW - top)[:, None], (columns_BHW - left)[:, None]

    def at(row_step: int, column_step: int) -> Tensor:
        rows = border_index(top.long() + row_step, height, border)
        columns = border_index(left.long() + column_step, width, border)
        index = (rows * width + columns).flatten(1)[:, None].expand(-1, images_BCHW.shape[1], -1)
        return images_BCHW.flatten(2).gather(2, index).view_as(images_BCHW)

    upper = at(0, 0) * (1 - right) + at(0, 1) * right
    lower = at(1, 0) * (1 - right) + at(1, 1) * right
    return upper * (1 - down) + lower * down
