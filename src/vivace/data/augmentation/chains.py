"""Mixtures of chains of random operations, for networks that keep their accuracy on corrupted images.

`augmix` has the operations of AugMix (Hendrycks et al. 2020, arXiv:1912.02781), `prime` families of smooth random
changes of filter, colour and place in the manner of PRIME (Modas et al. 2022, arXiv:2112.13547). Neither has an
operation that is one of the common corruptions (arXiv:1903.12261): a network that was trained on those would be
measured on what it has seen.

images_BCHW are uint8 or float32 on the 0..255 scale. B images are changed at once, each in its own way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vivace.data.augmentation.color import like
from vivace.data.augmentation.trivial_augment import OPERATIONS

__all__ = ["MIXTURES", "mix_chains"]

# of AugMix: three chains of one to three operations
WIDTH, DEPTH = 3, 3
# "severity 3" of AugMix: the strengths are uniform in [0.1, 3] of 10, and what 10 of 10 means for each operation
LOWEST, HIGHEST = 0.01, 0.3
ROTATION, SHEAR, SHIFT = math.radians(30), 0.3, 1 / 3
POSTERIZED_BITS, SOLARIZED = 4, 255.0
# the size of a random 3×3 filter beside the identity; the largest that PRIME draws is 4, for filters of unit sum
FILTER_SCALE = 1.0
# waves of a random colour curve and of a random field of shifts
COLOUR_WAVES, SHIFT_WAVES = 20, 5
# their largest typical change: of a colour as a fraction of the scale, of a place in px of an image of 32 px
COLOUR_SCALE, SHIFT_SCALE = 0.15, 1.5

Operation = Callable[[Tensor, torch.Generator], Tensor]


def mix_chains(images_BCHW: Tensor, operations: Sequence[Operation], generator: torch.Generator) -> Tensor:
    """(1 - m) · image + m · Σ wᵢ chainᵢ(image), with m uniform and w from a flat Dirichlet; same dtype, channels_last.

    A chain is one to three operations, each drawn anew for each image.
    """
    count, device = len(images_BCHW), images_BCHW.device
    start = images_BCHW.float()
    # a flat Dirichlet is exponential variates by their sum
    weights_WB = torch.empty(WIDTH, count, device=device).exponential_(generator=generator)
    weights_WB = weights_WB / weights_WB.sum(0)
    fraction_B = torch.rand(count, generator=generator, device=device)
    depths_WB = torch.randint(1, DEPTH + 1, (WIDTH, count), generator=generator, device=device)
    # B · W images at once: fewer and larger calls
    chained = start.repeat(WIDTH, 1, 1, 1)
    for depth in range(1, DEPTH + 1):
        rows = (depths_WB.reshape(-1) >= depth).nonzero()[:, 0]
        chained[rows] = _one_each(chained[rows], operations, generator)
    mixed = (weights_WB.reshape(-1, 1, 1, 1) * chained).view(WIDTH, *start.shape).sum(0)
    return like(torch.lerp(start, mixed, fraction_B.view(-1, 1, 1, 1)).clamp_(0, 255), images_BCHW)


def _one_each(images: Tensor, operations: Sequence[Operation], generator: torch.Generator) -> Tensor:
    """Float images after one operation each, drawn at random."""
    which = torch.randint(0, len(operations), (len(images),), generator=generator, device=images.device)
    changed = torch.empty_like(images)
    for number, operation in enumerate(operations):
        rows = (which == number).nonzero()[:, 0]
        if len(rows):
            changed[rows] = operation(images[rows], generator).clamp_(0, 255)
    return changed


def _strength(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(strength in [LOWEST, HIGHEST], sign) of each image, float [B]."""
    draw = torch.rand(2, len(images), generator=generator, device=images.device)
    return LOWEST + (HIGHEST - LOWEST) * draw[0], torch.where(draw[1] < 0.5, -1.0, 1.0)


def _affine(images: Tensor, *, angle: Tensor | float = 0.0, shear: Tensor | float = 0.0, shift: Tensor | float = 0.0,
            upright: bool = False) -> Tensor:  # fmt: skip
    """Turned by `angle`, sheared and shifted along x, or with `upright` along y; bilinear, black outside."""
    count = len(images)
    angle_B, shear_B, shift_B = (
        torch.as_tensor(value, dtype=torch.float32, device=images.device).expand(count)
        for value in (angle, shear, shift)
    )
    matrix = torch.zeros(count, 2, 3, device=images.device)
    matrix[:, 0, 0], matrix[:, 0, 1] = angle_B.cos(), -angle_B.sin()
    matrix[:, 1, 0], matrix[:, 1, 1] = angle_B.sin(), angle_B.cos()
    row, column = (1, 0) if upright else (0, 1)
    matrix[:, row, column] += shear_B
    # places are from -1 to 1
    matrix[:, row, 2] += 2 * shift_B
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def _rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    level, sign = _strength(images, generator)
    return _affine(images, angle=ROTATION * level * sign)


def _shear(images: Tensor, generator: torch.Generator, *, upright: bool) -> Tensor:
    level, sign = _strength(images, generator)
    return _affine(images, shear=SHEAR * level * sign, upright=upright)


def _shift(images: Tensor, generator: torch.Generator, *, upright: bool) -> Tensor:
    level, sign = _strength(images, generator)
    return _affine(images, shift=SHIFT * level * sign, upright=upright)


def _posterize(images: Tensor, generator: torch.Generator) -> Tensor:
    level, _ = _strength(images, generator)
    step = 2 ** (8 - (POSTERIZED_BITS - (POSTERIZED_BITS * level).floor())).view(-1, 1, 1, 1)
    return (images / step).floor() * step


def _solarize(images: Tensor, generator: torch.Generator) -> Tensor:
    level, _ = _strength(images, generator)
    return torch.where(images >= (SOLARIZED * (1 - level)).view(-1, 1, 1, 1), 255 - images, images)


def _named(name: str) -> Operation:
    """An operation of TrivialAugment that has no strength."""

    def operation(images: Tensor, generator: torch.Generator) -> Tensor:
        none = torch.zeros(len(images), device=images.device)
        return OPERATIONS[name](images, none, none)

    return operation


def _filtered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each channel through a random 3×3 filter: the identity and normal variates of a random size."""
    count, channels, height, width = images.shape
    size = FILTER_SCALE * torch.rand(count, 1, 1, 1, generator=generator, device=images.device)
    filters = size * torch.randn(count, channels, 3, 3, generator=generator, device=images.device) / 3
    filters[:, :, 1, 1] += 1
    # in contrast around the mean, which a filter would change most
    mean = images.mean((2, 3), keepdim=True)
    padded = functional.pad(images - mean, (1, 1, 1, 1), mode="reflect")
    out = mean.expand_as(images).clone()
    for row in range(3):
        for column in range(3):
            part = padded[:, :, row : row + height, column : column + width]
            out.addcmul_(part, filters[:, :, row, column, None, None])
    return out


def _recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each channel through a random smooth curve that keeps black and white: x + Σ aₖ sin(π k x)."""
    count, channels = images.shape[:2]
    device = images.device
    waves = torch.arange(1, COLOUR_WAVES + 1, device=device)
    size = COLOUR_SCALE * torch.rand(count, 1, 1, generator=generator, device=device)
    # the smoother the likelier: waves fall with their number
    factors = size * torch.randn(count, channels, COLOUR_WAVES, generator=generator, device=device) / waves.sqrt()
    x = torch.arange(256, device=device) / 255
    curves = 255 * (x + factors @ (math.pi * waves[:, None] * x).sin())
    places = images.reshape(count, channels, -1).round().long()
    return curves.gather(2, places).view(images.shape)


def _distorted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image sampled at places that a random smooth field has moved; borders stay."""
    count, _, height, width = images.shape
    device = images.device
    waves = torch.arange(1, SHIFT_WAVES + 1, device=device)
    size = SHIFT_SCALE / 16 * torch.rand(count, 1, 1, 1, generator=generator, device=device)
    # a diffeomorphism where slopes stay below 1: long waves may be larger than short ones
    damping = 1 / (waves[:, None] ** 2 + waves[None, :] ** 2).sqrt()
    factors = size * damping * torch.randn(count, 2, SHIFT_WAVES, SHIFT_WAVES, generator=generator, device=device)
    down = (math.pi * waves[:, None] * ((torch.arange(height, device=device) + 0.5) / height)).sin()
    across = (math.pi * waves[:, None] * ((torch.arange(width, device=device) + 0.5) / width)).sin()
    moved = down.T @ factors @ across
    plain = functional.affine_grid(torch.eye(2, 3, device=device)[None], [1, 1, height, width], align_corners=False)
    grid = plain + moved.permute(0, 2, 3, 1)
    return functional.grid_sample(images, grid, align_corners=False, padding_mode="reflection")


MIXTURES: dict[str, tuple[Operation, ...]] = {
    "augmix": (
        _named("autocontrast"),
        _named("equalize"),
        _posterize,
        _rotate,
        _solarize,
        lambda images, generator: _shear(images, generator, upright=False),
        lambda images, generator: _shear(images, generator, upright=True),
        lambda images, generator: _shift(images, generator, upright=False),
        lambda images, generator: _shift(images, generator, upright=True),
    ),
    "prime": (_filtered, _recoloured, _distorted),
}
"""Operations by the value of `augment.mix`."""
