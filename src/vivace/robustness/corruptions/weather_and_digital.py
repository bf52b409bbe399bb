"""Weather and digital corruptions: seven of the common ones (arXiv:1903.12261, appendix B).

Each takes images_BCHW float32 in [0, 1], the constants of a severity and the random numbers, and gives images of the
same shape, in [0, 1] up to clamping. Channels: 3 (RGB), or 1.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vivace.robustness.corruptions.draws import Draws
from vivace.robustness.corruptions.noise_and_blur import as_levels, moved_along
from vivace.robustness.corruptions.sampling import (
    along_axes,
    bilinear_at,
    box_matrix,
    gaussian_blurred,
    zoom_matrix,
)

__all__ = [
    "brightness",
    "contrast",
    "elastic_transform",
    "fog",
    "jpeg_compression",
    "pixelate",
    "snow",
]

# ITU-R 601
LUMA = (0.299, 0.587, 0.114)


def snow(images_BCHW: Tensor, flakes: tuple[float, ...], draws: Draws) -> Tensor:
    """flakes: mean and sigma of their noise, its enlargement, the least that is seen, radius and sigma of their trail
    in px, and the weight of the image beside its whitened self."""
    mean, sigma, zoom, least, radius, trail, kept = flakes
    batch, _, height, width = images_BCHW.shape
    layer = mean + sigma * draws.normal(batch, 1, height, width)
    layer = along_axes(layer, zoom_matrix(height, zoom), zoom_matrix(width, zoom))
    layer = as_levels(torch.where(layer < least, 0.0, layer)).float()
    # downwards: between 45° and 135°
    angles_B = 90 * draws.uniform(batch) - 135
    # what the published code blurs and reads again has 8 bits
    layer = as_levels(moved_along(layer / 255, radius, trail, angles_B)).float() / 255
    whitened = torch.maximum(images_BCHW, _grey(images_BCHW) * 1.5 + 0.5)
    return kept * images_BCHW + (1 - kept) * whitened + layer + layer.flip(-2, -1)


def _grey(images_BCHW: Tensor) -> Tensor:
    if images_BCHW.shape[1] == 1:
        return images_BCHW
    weights = images_BCHW.new_tensor(LUMA)
    return (images_BCHW * weights[:, None, None]).sum(1, keepdim=True)


def fog(images_BCHW: Tensor, mist: tuple[float, float], draws: Draws) -> Tensor:
    """mist: its density, and how much smoother each finer scale of it is."""
    density, decay = mist
    batch, _, height, width = images_BCHW.shape
    layer = _plasma(batch, 1 << (max(height, width) - 1).bit_length(), decay, draws)[:, None, :height, :width]
    brightest = images_BCHW.amax((1, 2, 3), keepdim=True)
    return (images_BCHW + density * layer) * brightest / (brightest + density)


def _plasma(batch: int, side: int, decay: float, draws: Draws) -> Tensor:
    """float32 [B, side, side] in [0, 1]: height maps by the diamond-square algorithm on a torus; side: a power of 2."""
    first = draws.uniform(batch, 1, 1)
    # the corner is 0, all other places are filled below
    heights = torch.zeros(batch, side, side, dtype=torch.float64, device=first.device)
    step, amplitude, draw = side, 100.0, first
    while step >= 2:
        half, count = step // 2, side // step
        corners, middles = slice(0, side, step), slice(half, side, step)
        noise = draw if step == side else draws.uniform(batch, count, count)
        around = heights[:, corners, corners]
        around = around + around.roll(-1, 1)
        heights[:, middles, middles] = _wobbled(around + around.roll(-1, 2), noise, amplitude)
        inner, outer = heights[:, middles, middles], heights[:, corners, corners]
        up, left = inner + inner.roll(1, 1), inner + inner.roll(1, 2)
        across, down = outer + outer.roll(-1, 2), outer + outer.roll(-1, 1)
        heights[:, corners, middles] = _wobbled(up + across, draws.uniform(batch, count, count), amplitude)
        heights[:, middles, corners] = _wobbled(left + down, draws.uniform(batch, count, count), amplitude)
        step, amplitude = half, amplitude / decay
    heights -= heights.amin((1, 2), keepdim=True)
    scaled: Tensor = (heights / heights.amax((1, 2), keepdim=True).clamp_min(1e-12)).float()
    return scaled


def _wobbled(sums: Tensor, noise: Tensor, amplitude: float) -> Tensor:
    """The means of four neighbours, moved at random. The amplitude counts twice, as in what was published."""
    return sums / 4 + amplitude * amplitude * (2 * noise.double() - 1)


def brightness(images_BCHW: Tensor, added: float, draws: Draws) -> Tensor:
    """added: to the value of HSV, whose hue and saturation stay: all channels grow by one factor."""
    value = images_BCHW.amax(1, keepdim=True)
    brighter = (value + added).clamp(0, 1)
    return torch.where(value > 0, images_BCHW * (brighter / value.clamp_min(1e-12)), brighter)


def contrast(images_BCHW: Tensor, kept: float, draws: Draws) -> Tensor:
    """kept: the factor on the distance of each value from the mean of its channel in the image."""
    means = images_BCHW.mean((2, 3), keepdim=True)
    return (images_BCHW - means) * kept + means


def elastic_transform(images_BCHW: Tensor, rubber: tuple[float, float, float], draws: Draws) -> Tensor:
    """rubber: strength and sigma of the local displacements, and how far three corners move at most; all in px."""
    strength, sigma, corners = rubber
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    middle, reach = height // 2, min(height, width) // 3
    before = torch.tensor(
        [
            [middle + reach, width // 2 + reach],
            [middle + reach, width // 2 - reach],
            [middle - reach, width // 2 - reach],
        ],
        dtype=torch.float64,
    )
    after = before + corners * (2 * draws.uniform(batch, 3, 2).double().cpu() - 1)
    # where each pixel of the result comes from: the affine map of the moved corners back to their places
    back = torch.linalg.solve(torch.cat([after, torch.ones(batch, 3, 1)], 2), before.expand(batch, -1, -1)).to(device)
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=device),
        torch.arange(width, dtype=torch.float64, device=device),
        indexing="ij",
    )
    places = torch.stack([columns, rows, torch.ones_like(rows)], 2).flatten(0, 1) @ back
    column_places, row_places = places.view(batch, height, width, 2).to(images_BCHW.dtype).unbind(3)
    turned = bilinear_at(images_BCHW, row_places, column_places, "mirror")
    right, down = (
        strength
        * gaussian_blurred(2 * draws.uniform(batch, 1, height, width) - 1, sigma, border="reflect", truncate=3)[:, 0]
        for _ in range(2)
    )
    return bilinear_at(turned, rows.float() + down, columns.float() + right, "reflect")


def pixelate(images_BCHW: Tensor, scale: float, draws: Draws) -> Tensor:
    """scale: of the smaller image whose pixels are enlarged again, by Pillow's BOX both times."""
    height, width = images_BCHW.shape[-2:]
    small = (max(1, int(height * scale)), max(1, int(width * scale)))
    levels = (images_BCHW * 255).round()
    for rows, columns in (small, (height, width)):
        # Pillow rounds after each of its two passes, columns first
        levels = along_axes(levels, np.eye(levels.shape[2]), box_matrix(levels.shape[3], columns))
        levels = (levels + 0.5 + 1e-4).floor()
        levels = along_axes(levels, box_matrix(levels.shape[2], rows), np.eye(levels.shape[3]))
        levels = (levels + 0.5 + 1e-4).floor()
    return levels.clamp(0, 255) / 255


def jpeg_compression(images_BCHW: Tensor, quality: int, draws: Draws) -> Tensor:
    """quality: of libjpeg, by Pillow, on the CPU, image by image; chroma has half the resolution."""
    levels = (images_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.stack([_through_jpeg(image, quality) for image in levels])
    out = torch.from_numpy(decoded).to(images_BCHW.device).permute(0, 3, 1, 2)
    return out.to(images_BCHW.dtype) / 255


def _through_jpeg(image_HWC: np.ndarray, quality: int) -> np.ndarray:
    grey = image_HWC.shape[2] == 1
    file = io.BytesIO()
    Image.fromarray(image_HWC[:, :, 0] if grey else image_HWC).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        pixels = np.array(decoded)
    return pixels[:, :, None] if grey else pixels
