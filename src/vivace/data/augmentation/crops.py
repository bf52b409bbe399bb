"""Crops and resized crops of a batch, with a different box for each image.

images_BCHW are uint8 or float32 on the 0..255 scale; outputs have the same dtype and channels_last strides.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["crop", "crop_boxes", "resized_crop"]

ASPECT_RANGE = (3 / 4, 4 / 3)
# random boxes that are tried before the central one is used
NUM_TRIES = 10


def crop(images_BCHW: Tensor, tops_B: Tensor, lefts_B: Tensor, size: int, flips_B: Tensor | None = None) -> Tensor:
    """Crops of `size` × `size`, which may extend beyond the image: with reflection padding.

    tops_B, lefts_B: int64, the upper left corners; a crop may extend beyond the image by less than the image's side.
    flips_B: bool [B], which crops to flip horizontally. Cropping, padding and flipping are a single gather.
    """
    height, width = images_BCHW.shape[-2:]
    steps = torch.arange(size, device=images_BCHW.device)
    columns_BS = lefts_B[:, None] + steps
    if flips_B is not None:
        columns_BS = torch.where(flips_B[:, None], columns_BS.flip(1), columns_BS)
    return _gather_pixels(images_BCHW, _reflect(tops_B[:, None] + steps, height), _reflect(columns_BS, width))


def _gather_pixels(images_BCHW: Tensor, rows_BS: Tensor, columns_BT: Tensor) -> Tensor:
    """The selected rows and columns of each image, [B, C, S, T]."""
    images_BHWC = images_BCHW.permute(0, 2, 3, 1).contiguous()
    count, height, width, channels = images_BHWC.shape
    # positions in the flattened pixels: one index per pixel copies all its channels
    first_rows = torch.arange(0, count * height, height, device=images_BCHW.device)
    places_BST = ((first_rows[:, None] + rows_BS) * width)[:, :, None] + columns_BT[:, None, :]
    pixels_PC = images_BHWC.view(-1, channels).index_select(0, places_BST.view(-1))
    return pixels_PC.view(*places_BST.shape, channels).permute(0, 3, 1, 2)


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Positions with those outside 0..size-1 reflected; the border pixel is not repeated."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def crop_boxes(
    count: int,
    image_size: tuple[int, int] | torch.Size,
    area_range: tuple[float, float],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random boxes (top, left, height, width) inside the image, int64 [B, 4], with torchvision's distribution.

    The area as a fraction of the image is uniform in `area_range`; the aspect ratio (width / height) is log-uniform
    between 3/4 and 4/3 (the Inception crop, arXiv:1409.4842). The first of ten draws that fits is used; if none fits,
    the largest central box with an aspect ratio in this range.
    """
    height, width = image_size
    area_TB, aspect_TB = torch.rand(2, NUM_TRIES, count, generator=generator, device=device)
    low, high = area_range
    area_TB = (low + (high - low) * area_TB) * (height * width)
    log_low, log_high = math.log(ASPECT_RANGE[0]), math.log(ASPECT_RANGE[1])
    aspect_TB = (log_low + (log_high - log_low) * aspect_TB).exp()
    heights_TB, widths_TB = (area_TB / aspect_TB).sqrt().round(), (area_TB * aspect_TB).sqrt().round()
    fits_TB = (heights_TB >= 1) & (heights_TB <= height) & (widths_TB >= 1) & (widths_TB <= width)
    # argmax returns the first maximum
    first_1B = fits_TB.int().argmax(0, keepdim=True)
    fits_B = fits_TB.gather(0, first_1B)[0]
    whole_height = min(height, round(width / ASPECT_RANGE[0]))
    whole_width = min(width, round(height * ASPECT_RANGE[1]))
    heights_B = torch.where(fits_B, heights_TB.gather(0, first_1B)[0], float(whole_height))
    widths_B = torch.where(fits_B, widths_TB.gather(0, first_1B)[0], float(whole_width))
    room_2B = torch.stack([height - heights_B, width - widths_B])
    corners_2B = (torch.rand(2, count, generator=generator, device=device) * (room_2B + 1)).floor()
    corners_2B = torch.where(fits_B, torch.minimum(corners_2B, room_2B), (room_2B / 2).floor())
    return torch.stack([*corners_2B, heights_B, widths_B], 1).long()


def resized_crop(images_BCHW: Tensor, boxes_B4: Tensor, size: int, flips_B: Tensor | None = None) -> Tensor:
    """Boxes (top, left, height, width) of the images resized to `size` × `size`, bilinear with antialiasing.

    flips_B: bool [B], which come out mirrored. What torchvision's resized_crop(antialias=True) gives for each image:
    bit for bit where `_resize_each` does it, and within one level of 255 where `_resize_together` does.
    """
    if images_BCHW.device.type == "cpu" and images_BCHW.dtype == torch.uint8:
        return _resize_each(images_BCHW, boxes_B4, size, flips_B)
    return _resize_together(images_BCHW, boxes_B4, size, flips_B)


def _resize_each(images_BCHW: Tensor, boxes_B4: Tensor, size: int, flips_B: Tensor | None) -> Tensor:
    """Resize by one call of torch's vectorized uint8 kernel per image.

    On CPU this loop is faster than batched matrix products, and for photos faster than grid_sample, which does not
    prevent aliasing (docs/log/2026-11-28.md).
    """
    count, channels = images_BCHW.shape[:2]
    out_BHWC = torch.empty(count, size, size, channels, dtype=torch.uint8)
    out = out_BHWC.permute(0, 3, 1, 2)
    flips = [False] * count if flips_B is None else flips_B.tolist()
    with _one_thread():
        for place, ((top, left, height, width), flip) in enumerate(zip(boxes_B4.tolist(), flips, strict=True)):
            box = images_BCHW[place : place + 1, :, top : top + height, left : left + width]
            box = functional.interpolate(box, (size, size), mode="bilinear", antialias=True)
            out[place : place + 1] = box.flip(3) if flip else box
    return out


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: for tiny operations the synchronization of threads costs more than they save.

    On a busy machine it can cost two orders of magnitude.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _resize_together(images_BCHW: Tensor, boxes_B4: Tensor, size: int, flips_B: Tensor | None) -> Tensor:
    """Resize by two batched matrix products, with a weight matrix per image and axis; fast on a GPU."""
    tops_B, lefts_B, heights_B, widths_B = boxes_B4.unbind(1)
    rows_BSH = _resize_weights(tops_B, heights_B, size, images_BCHW.shape[2])
    columns_BSW = _resize_weights(lefts_B, widths_B, size, images_BCHW.shape[3])
    if flips_B is not None:
        columns_BSW = torch.where(flips_B[:, None, None], columns_BSW.flip(1), columns_BSW)
    count, channels, height, width = images_BCHW.shape
    planes = images_BCHW.to(torch.float32, memory_format=torch.contiguous_format).view(count, channels * height, width)
    narrow = torch.bmm(planes, columns_BSW.transpose(1, 2)).view(count, channels, height, size)
    pixels = torch.matmul(rows_BSH[:, None], narrow)
    if images_BCHW.dtype == torch.uint8:
        # the weights sum to 1, so only rounding can exceed 0..255
        pixels = pixels.add_(0.5).clamp_(0, 255).to(torch.uint8)
    return pixels.contiguous(memory_format=torch.channels_last)


def _resize_weights(starts_B: Tensor, lengths_B: Tensor, size: int, image_size: int) -> Tensor:
    """Weights [B, size, image_size] of a triangle filter, widened for downscaling; every row sums to 1."""
    scale_B11 = (lengths_B / size)[:, None, None]
    outputs = torch.arange(size, device=starts_B.device)[:, None]
    # relative to the start of the box; pixels outside it get no weight, as if the box was cropped first
    inputs_B1N = torch.arange(image_size, device=starts_B.device) - starts_B[:, None, None]
    distance = (inputs_B1N + 0.5 - (outputs + 0.5) * scale_B11).abs()
    weights = (1 - distance / scale_B11.clamp(min=1.0)).clamp_(min=0)
    weights = weights * ((inputs_B1N >= 0) & (inputs_B1N < lengths_B[:, None, None]))
    return weights / weights.sum(2, keepdim=True)
