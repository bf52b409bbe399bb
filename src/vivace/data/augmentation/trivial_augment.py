"""TrivialAugment: one random operation of random strength per image (Müller and Hutter 2021, arXiv:2103.10158).

The operations and ranges are those of the paper's "wide" space, as in torchvision's TrivialAugmentWide. An operation
is applied at once to all images of the batch that drew it, each with its own strength.

Arguments of an operation: images_BCHW, uint8 or float32 on the 0..255 scale; levels_B, the strength in [0, 1]; signs_B,
the direction, -1 or 1. It returns float32 pixels, or the dtype of the images if it only moves pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from vivace.data.augmentation.color import blend_, grey, like

__all__ = ["NUM_BINS", "OPERATIONS", "apply_operation", "trivial_augment"]

NUM_BINS = 31
LARGEST_SHEAR = 0.99
LARGEST_SHIFT_PX = 32
LARGEST_ANGLE = math.radians(135)
LARGEST_CHANGE = 0.99
MOST_BITS_LOST = 6


def trivial_augment(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Apply a random operation of OPERATIONS to each image; same dtype, 0..255 scale, channels_last."""
    count, device = len(images_BCHW), images_BCHW.device
    which_B = torch.randint(0, len(OPERATIONS), (count,), generator=generator, device=device)
    levels_B = torch.randint(0, NUM_BINS, (count,), generator=generator, device=device) / (NUM_BINS - 1)
    signs_B = torch.randint(0, 2, (count,), generator=generator, device=device) * 2.0 - 1
    # sort the images by operation, split them, and restore the order: moving whole images is cheap, and there is only
    # one synchronization with the device
    order_B = which_B.argsort(stable=True)
    counts = torch.bincount(which_B, minlength=len(OPERATIONS)).tolist()
    parts = (_take(values, order_B).split(counts) for values in (images_BCHW, levels_B, signs_B))
    changed = [
        apply_operation(name, images, levels, signs)
        for name, images, levels, signs in zip(OPERATIONS, *parts, strict=True)
        if len(images)
    ]
    return _take(torch.cat(changed), order_B.argsort())


def _take(values: Tensor, order_B: Tensor) -> Tensor:
    if values.ndim == 1:
        return values[order_B]
    return values.permute(0, 2, 3, 1).contiguous().index_select(0, order_B).permute(0, 3, 1, 2)


def apply_operation(name: str, images_BCHW: Tensor, levels_B: Tensor, signs_B: Tensor) -> Tensor:
    """Apply one operation to all images, clamped to 0..255; same dtype as the images, rounded if it is uint8."""
    changed = OPERATIONS[name](images_BCHW, levels_B, signs_B)
    if changed.dtype == torch.uint8:
        return changed
    return like(changed.clamp(0, 255), images_BCHW)


def _identity(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    return images


def _shear_x(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    x, y = _centred(images)
    # shears about the upper edge
    return _sample(images, x + _each(LARGEST_SHEAR * levels * signs) * (y + images.shape[2] / 2), y)


def _shear_y(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    x, y = _centred(images)
    return _sample(images, x, y + _each(LARGEST_SHEAR * levels * signs) * (x + images.shape[3] / 2))


def _translate_x(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    x, y = _centred(images)
    # to move the picture right, read further left
    return _sample(images, x - _each((LARGEST_SHIFT_PX * levels * signs).trunc()), y)


def _translate_y(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    x, y = _centred(images)
    return _sample(images, x, y - _each((LARGEST_SHIFT_PX * levels * signs).trunc()))


def _rotate(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    """Counter-clockwise if the sign is 1."""
    x, y = _centred(images)
    angle = _each(LARGEST_ANGLE * levels * signs)
    return _sample(images, angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y)


def _brightness(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    return images * _factors(levels, signs)


def _color(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    pixels = _floats(images)
    return blend_(pixels, grey(pixels), _factors(levels, signs))


def _contrast(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    pixels = _floats(images)
    return blend_(pixels, grey(pixels).mean((2, 3), keepdim=True), _factors(levels, signs))


def _sharpness(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    pixels = _floats(images)
    blurred = pixels.clone()
    # Pillow's smoothing kernel: 5 in the centre, 1 around it, divided by 13; the border is not smoothed. Two sums of
    # three are faster than avg_pool2d
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    blurred[..., 1:-1, 1:-1] = around.add_(pixels[..., 1:-1, 1:-1], alpha=4).div_(13)
    return blend_(pixels, blurred, _factors(levels, signs))


def _posterize(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    step = 2 ** _each((MOST_BITS_LOST * levels).round())
    return (images / step).floor() * step


def _solarize(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    # computed in this order, the thresholds are exact integers where they should be
    return torch.where(images >= _each(255 - 255 * levels), 255 - images, images)


def _autocontrast(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    """Stretch each channel so that its darkest value is 0 and its brightest 255; constant channels stay unchanged."""
    pixels = _floats(images)
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    flat = high == low
    return torch.where(flat, pixels, (pixels - low) * (255 / torch.where(flat, 1.0, high - low)))


def _equalize(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    """Equalize the histogram of each channel, as Pillow does."""
    count, channels, height, width = images.shape
    values = images.round().long().reshape(count * channels, height * width)
    histogram = torch.zeros(count * channels, 256, dtype=torch.long, device=images.device)
    histogram.scatter_add_(1, values, torch.ones_like(values))
    # Pillow's step excludes the brightest value that occurs
    last = histogram.gather(1, values.amax(1, keepdim=True))
    step = (height * width - last) // 255
    before = histogram.cumsum(1) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    equalized = torch.where(step == 0, values, table.gather(1, values))
    return equalized.view(count, channels, height, width).float()


def _floats(images_BCHW: Tensor) -> Tensor:
    """A float copy in NCHW layout, in which sums over channels are fastest."""
    return images_BCHW.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _each(values_B: Tensor) -> Tensor:
    """One value per image, as [B, 1, 1, 1]."""
    return values_B.view(-1, 1, 1, 1)


def _factors(levels: Tensor, signs: Tensor) -> Tensor:
    return _each(1 + LARGEST_CHANGE * levels * signs)


def _centred(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """x [1, 1, 1, W] and y [1, 1, H, 1] of the pixel centres, relative to the centre of the image, px."""
    height, width = images_BCHW.shape[-2:]
    x = torch.arange(width, device=images_BCHW.device) + 0.5 - width / 2
    y = torch.arange(height, device=images_BCHW.device) + 0.5 - height / 2
    return x.view(1, 1, 1, -1), y.view(1, 1, -1, 1)


def _sample(images_BCHW: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample the nearest pixel at (x, y), which broadcast to [B, 1, H, W]; 0 outside the image."""
    images_BHWC = images_BCHW.permute(0, 2, 3, 1).contiguous()
    count, height, width, channels = images_BHWC.shape
    columns = (x + (width - 1) / 2).round().long()
    rows = (y + (height - 1) / 2).round().long()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    first_rows = torch.arange(0, count * height, height, device=x.device).view(-1, 1, 1, 1)
    # a black pixel is appended for positions outside
    pixels_PC = functional.pad(images_BHWC.view(-1, channels), (0, 0, 0, 1))
    places = torch.where(inside, (first_rows + rows) * width + columns, len(pixels_PC) - 1)
    return pixels_PC.index_select(0, places.view(-1)).view(images_BHWC.shape).permute(0, 3, 1, 2)


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
