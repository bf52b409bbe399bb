"""TrivialAugment: one random operation of random strength per image (Müller and Hutter 2021, arXiv:2103.10158).

The operations and ranges are those of the paper's "wide" space. Each is applied to the images of the batch that drew
it, all at once, every image with a strength of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["OPERATIONS", "apply_operation", "trivial_augment"]

NUM_BINS = 31


def trivial_augment(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image changed by one operation; the same type, on the 0..255 scale."""
    count, device = len(images_BCHW), images_BCHW.device
    which_B = torch.randint(0, len(OPERATIONS), (count,), generator=generator, device=device)
    levels_B = torch.randint(0, NUM_BINS, (count,), generator=generator, device=device).float() / (NUM_BINS - 1)
    signs_B = torch.randint(0, 2, (count,), generator=generator, device=device).float() * 2 - 1
    pixels = images_BCHW.float()
    out = pixels.clone()
    for number, name in enumerate(OPERATIONS):
        chosen = (which_B == number).nonzero().squeeze(1)
        if len(chosen):
            out[chosen] = apply_operation(name, pixels[chosen], levels_B[chosen], signs_B[chosen])
    return out.round_().to(torch.uint8) if images_BCHW.dtype == torch.uint8 else out


def apply_operation(name: str, pixels_BCHW: Tensor, levels_B: Tensor, signs_B: Tensor) -> Tensor:
    """One operation on float pixels in 0..255, strength `levels_B` in [0, 1], direction `signs_B` of -1 or 1."""
    return OPERATIONS[name](pixels_BCHW, levels_B, signs_B).clamp_(0, 255)


def _identity(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    return pixels.clone()


def _shear_x(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    shear = (levels * 0.99 * signs).atan().tan()
    return _affine(pixels, _matrix(len(pixels), pixels, xy=shear, about_corner=True))


def _shear_y(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    return _affine(pixels, _matrix(len(pixels), pixels, yx=levels * 0.99 * signs, about_corner=True))


def _translate_x(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    return _affine(pixels, _matrix(len(pixels), pixels, shift_x=(levels * 32 * signs).trunc()))


def _translate_y(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    return _affine(pixels, _matrix(len(pixels), pixels, shift_y=(levels * 32 * signs).trunc()))


def _rotate(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    angle = levels * signs * (135 * math.pi / 180)
    return _affine(
        pixels, _matrix(len(pixels), pixels, xx=angle.cos(), xy=-angle.sin(), yx=angle.sin(), yy=angle.cos())
    )


def _brightness(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    return pixels * _factors(levels, signs)


def _color(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    grey = _grey(pixels)
    return grey + _factors(levels, signs) * (pixels - grey)


def _contrast(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    mean = _grey(pixels).floor().mean((2, 3), keepdim=True)
    return mean + _factors(levels, signs) * (pixels - mean)


def _sharpness(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    channels = pixels.shape[1]
    kernel = torch.ones(3, 3, device=pixels.device)
    kernel[1, 1] = 5
    weights = (kernel / 13).expand(channels, 1, 3, 3)
    blurred = pixels.clone()
    # the border has no full neighbourhood and stays
    blurred[..., 1:-1, 1:-1] = functional.conv2d(pixels, weights, groups=channels).round()
    return blurred + _factors(levels, signs) * (pixels - blurred)


def _posterize(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    bits = 8 - (levels * 6).round()
    step = (2 ** (8 - bits)).view(-1, 1, 1, 1)
    return (pixels.floor() / step).floor() * step


def _solarize(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    threshold = (255 * (1 - levels)).view(-1, 1, 1, 1)
    return torch.where(pixels >= threshold, 255 - pixels, pixels)


def _autocontrast(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    flat = high == low
    stretched = (pixels - low) * (255 / torch.where(flat, torch.ones_like(high), high - low))
    return torch.where(flat, pixels, stretched)


def _equalize(pixels: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    """Each channel's grey values spread so that their cumulative histogram becomes a line, as Pillow does it."""
    count, channels, height, width = pixels.shape
    values = pixels.round().long().reshape(count * channels, height * width)
    histogram = torch.zeros(count * channels, 256, dtype=torch.long, device=pixels.device)
    histogram.scatter_add_(1, values, torch.ones_like(values))
    # the step leaves the brightest value that occurs out
    last = histogram.gather(1, values.amax(1, keepdim=True))
    step = (histogram.sum(1, keepdim=True) - last) // 255
    before = histogram.cumsum(1) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    equalized = table.gather(1, values)
    return torch.where(step == 0, values, equalized).reshape(pixels.shape).float()


def _factors(levels: Tensor, signs: Tensor) -> Tensor:
    """1 ± 0.99 · level, as [B, 1, 1, 1]."""
    return (1 + 0.99 * levels * signs).view(-1, 1, 1, 1)


def _grey(pixels_BCHW: Tensor) -> Tensor:
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    red, green, blue = pixels_BCHW.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _matrix(
    count: int,
    pixels: Tensor,
    *,
    xx: Tensor | None = None,
    xy: Tensor | None = None,
    yx: Tensor | None = None,
    yy: Tensor | None = None,
    shift_x: Tensor | None = None,
    shift_y: Tensor | None = None,
    about_corner: bool = False,
) -> Tensor:
    """[B, 2, 3]: from output pixel (x, y, 1), measured from the centre, to input pixel.

    about_corner: the map leaves the upper left corner in place rather than the centre.
    """
    zero, one = torch.zeros(count, device=pixels.device), torch.ones(count, device=pixels.device)
    xx, yy = one if xx is None else xx, one if yy is None else yy
    xy, yx = zero if xy is None else xy, zero if yx is None else yx
    # moving the picture right by t means reading t further left
    offset_x = zero if shift_x is None else -shift_x
    offset_y = zero if shift_y is None else -shift_y
    if about_corner:
        height, width = pixels.shape[-2:]
        offset_x = offset_x + xy * (height / 2)
        offset_y = offset_y + yx * (width / 2)
    return torch.stack([torch.stack([xx, xy, offset_x], 1), torch.stack([yx, yy, offset_y], 1)], 1)


def _affine(pixels_BCHW: Tensor, matrix_B23: Tensor) -> Tensor:
    """Nearest-neighbour sampling; what comes from outside is 0."""
    height, width = pixels_BCHW.shape[-2:]
    rows = torch.arange(height, device=pixels_BCHW.device) + 0.5 - height / 2
    columns = torch.arange(width, device=pixels_BCHW.device) + 0.5 - width / 2
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    points_P3 = torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3)
    sources = torch.einsum("pk,bjk->bpj", points_P3, matrix_B23).view(-1, height, width, 2)
    scale = torch.tensor([2 / width, 2 / height], device=pixels_BCHW.device)
    return functional.grid_sample(
        pixels_BCHW, sources * scale, mode="nearest", padding_mode="zeros", align_corners=False
    )


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "identity": _identity,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
