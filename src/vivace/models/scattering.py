"""A network whose body is fixed: wavelet scattering of the image, group norm, and a linear head.

Nothing of the body is learnt, so that it can't say anything of the images that the head was trained on. The scattering
transform (Bruna & Mallat, arXiv:1203.1513) is of order 2 with Morlet wavelets, J = 2 scales and L = 8 angles; before a
head that is trained with differential privacy it is as good as networks that are trained whole (arXiv:2011.11660).

The wavelets are those usual in the literature: sigma 0.8 · 2^j, frequency 3π/4 · 2^-j, slant 4/L. They are applied by
plain convolutions, so that every runtime can run them; borders are reflected at each of these.

B images, C channels, J scales, L angles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vivace.errors import ModelError

__all__ = ["ScatterLinear", "Scattering"]

SCALES, ANGLES = 2, 8
# of each channel: the mean, 16 of the first order, and 64 of the second, whose scale is coarser than that of the first
NUM_MAPS = 1 + SCALES * ANGLES + ANGLES * ANGLES
SIGMA, FREQUENCY, SLANT = 0.8, 3 * math.pi / 4, 4 / ANGLES
# kernels end where the envelope, which is wider along one axis, has fallen to exp(-REACH²/2)
REACH = 3.0
# least side in pixels: reflection can't reach beyond the image
MIN_SIZE = 16
# maps of a group of the norm, over which its mean and deviation are taken
MAPS_IN_GROUP = 9
# under the root: its gradient at 0 would be infinite
TINY = 1e-12


class Scattering(nn.Module):
    """images_BCHW float → maps_BMhw float, M = 81 · C, h = ⌈⌈H/2⌉/2⌉: the scattering coefficients of each channel.

    In the order of the literature: the mean, the first order by scale and angle, the second by its two angles. It has
    no parameters, and its filters are no part of the state dict.
    """

    fine: Tensor
    coarse: Tensor
    mean: Tensor
    mean_half: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, filters in (
            ("fine", _morlets(0)),
            ("coarse", _morlets(1)),
            # of images at full size and at half of it
            ("mean", _gaussian(SIGMA * 2 ** (SCALES - 1))),
            ("mean_half", _gaussian(SIGMA * 2 ** (SCALES - 2))),
        ):
            self.register_buffer(name, filters, persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        batch, channels, height, width = images_BCHW.shape
        # every channel is an image of its own
        planes = images_BCHW.reshape(batch * channels, 1, height, width)
        fine, coarse = _modulus(planes, self.fine, 1), _modulus(planes, self.coarse, 2)
        second = _modulus(fine.reshape(-1, 1, height, width), self.coarse, 2)
        half = second.shape[-2:]
        found = [
            _smoothed(planes, self.mean, 4),
            _smoothed(fine, self.mean, 4),
            _smoothed(coarse, self.mean_half, 2),
            _smoothed(second.reshape(batch * channels, ANGLES * ANGLES, *half), self.mean_half, 2),
        ]
        maps = torch.cat(found, 1)
        return maps.reshape(batch, channels * NUM_MAPS, *maps.shape[-2:])


class ScatterLinear(nn.Module):
    """images_BCHW float → logits_BK: scattering, group norm without parameters, and one linear layer, `head`.

    Group norm takes means and deviations within an image, so that no image has a part in what is computed of another.
    Raises ModelError for images below 16 px.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, size: int = 32) -> None:
        super().__init__()
        if size < MIN_SIZE:
            raise ModelError(f"scatter_linear takes images from {MIN_SIZE} px on: got {size}. Give a larger `size`.")
        # each stride of 2 rounds up
        side = ((size + 1) // 2 + 1) // 2
        self.scattering = Scattering()
        maps = NUM_MAPS * in_channels
        self.norm = nn.GroupNorm(maps // MAPS_IN_GROUP, maps, affine=False)
        self.head = nn.Linear(maps * side * side, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.norm(self.scattering(images_BCHW)).flatten(1))
        return logits_BK


def _modulus(planes: Tensor, filters: Tensor, stride: int) -> Tensor:
    """|planes * ψ| of each complex filter, whose real parts come first: [n, 1, H, W] → [n, L, ⌈H/stride⌉, …]."""
    both = functional.conv2d(_reflected(planes, filters), filters, stride=stride)
    real, imaginary = both.chunk(2, 1)
    return (real * real + imaginary * imaginary + TINY).sqrt()


def _smoothed(maps: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Each map convolved with the kernel on its own."""
    count, channels, height, width = maps.shape
    planes = maps.reshape(count * channels, 1, height, width)
    found = functional.conv2d(_reflected(planes, kernel), kernel, stride=stride)
    return found.reshape(count, channels, *found.shape[-2:])


def _reflected(planes: Tensor, kernel: Tensor) -> Tensor:
    margin = kernel.shape[-1] // 2
    return functional.pad(planes, (margin,) * 4, mode="reflect")


def _morlets(scale: int) -> Tensor:
    """[2L, 1, k, k]: the Morlet wavelets of a scale at all angles, first their real parts, then the imaginary ones."""
    sigma, frequency = SIGMA * 2**scale, FREQUENCY / 2**scale
    rows, columns = _grid(min(math.ceil(REACH * sigma / SLANT), MIN_SIZE - 1))
    real, imaginary = [], []
    for number in range(ANGLES):
        angle = (ANGLES - ANGLES // 2 - 1 - number) * math.pi / ANGLES
        along = rows * math.cos(angle) + columns * math.sin(angle)
        across = columns * math.cos(angle) - rows * math.sin(angle)
        envelope = (-(along**2 + (SLANT * across) ** 2) / (2 * sigma**2)).exp()
        envelope = envelope * SLANT / (2 * math.pi * sigma**2)
        wave = torch.complex(envelope * (frequency * along).cos(), envelope * (frequency * along).sin())
        # a wavelet has no mean
        wave = wave - wave.sum() / envelope.sum() * envelope
        real.append(wave.real)
        imaginary.append(wave.imag)
    # convolution flips its kernel, which torch's does not
    return torch.stack([*real, *imaginary]).flip(-1, -2).unsqueeze(1).float()


def _gaussian(sigma: float) -> Tensor:
    """[1, 1, k, k], whose sum is 1."""
    rows, columns = _grid(math.ceil(REACH * sigma))
    kernel = (-(rows**2 + columns**2) / (2 * sigma**2)).exp()
    return (kernel / kernel.sum()).float()[None, None]


def _grid(reach: int) -> tuple[Tensor, Tensor]:
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    return torch.meshgrid(line, line, indexing="ij")  # type: ignore[return-value]
