from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from vivace.data.augmentation import crops
from vivace.data.augmentation.crops import crop, crop_boxes, resized_crop

BOXES = [(0, 0, 40, 36), (3, 5, 20, 20), (10, 0, 30, 24), (39, 35, 1, 1), (0, 0, 8, 12), (7, 9, 33, 5)]

MakeImages = Callable[..., Tensor]


def reflected_window(image_CHW: Tensor, top: int, left: int, size: int) -> np.ndarray:
    """Reference in NumPy: pad the image by reflection, then crop."""
    pad = max(image_CHW.shape) - 1
    padded = np.pad(image_CHW.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    return padded[:, top + pad : top + pad + size, left + pad : left + pad + size]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_windows_are_those_of_the_reflected_image(make_images: MakeImages, channels: int, dtype: torch.dtype) -> None:
    images = make_images(40, height=24, width=20, channels=channels).to(dtype)
    generator = torch.Generator().manual_seed(0)
    tops, lefts = (torch.randint(-9, 17, (40,), generator=generator) for _ in range(2))
    flips = torch.rand(40, generator=generator) < 0.5
    windows = crop(images, tops, lefts, 16, flips)
    assert windows.dtype == dtype
    assert windows.is_contiguous(memory_format=torch.channels_last)
    for index in range(40):
        expected = reflected_window(images[index], int(tops[index]), int(lefts[index]), 16)
        if flips[index]:
            expected = expected[:, :, ::-1]
        assert np.array_equal(windows[index].numpy(), expected)


def test_a_window_does_not_change_the_images(make_images: MakeImages) -> None:
    images = make_images(4)
    before = images.clone()
    crop(images, torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long), 20, torch.ones(4) > 0)
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [9, 16, 32, 50])
def test_resized_boxes_are_those_of_torchvision_bit_for_bit(make_images: MakeImages, channels: int, size: int) -> None:
    images = make_images(len(BOXES), height=40, width=36, channels=channels)
    flips = torch.tensor([index % 2 == 1 for index in range(len(BOXES))])
    resized = resized_crop(images, torch.tensor(BOXES), size, flips)
    assert resized.dtype == torch.uint8
    assert resized.is_contiguous(memory_format=torch.channels_last)
    for image, result, box, flip in zip(images, resized, BOXES, flips, strict=True):
        expected = reference.resized_crop(image, *box, size=[size, size], antialias=True)
        assert torch.equal(result, reference.horizontal_flip(expected) if flip else expected)


@pytest.mark.parametrize("size", [9, 16, 32, 50])
def test_resizing_together_agrees_with_resizing_each(make_images: MakeImages, size: int) -> None:
    # the implementations for CPU and GPU agree within one level of 255, for float pixels within 0.001
    images, boxes = make_images(len(BOXES), height=40, width=36), torch.tensor(BOXES)
    flips = torch.arange(len(BOXES)) % 2 == 0
    each = crops._resize_each(images, boxes, size, flips)
    together = crops._resize_together(images, boxes, size, flips)
    assert together.dtype == torch.uint8
    assert together.is_contiguous(memory_format=torch.channels_last)
    assert (each.int() - together.int()).abs().max() <= 1
    floats = resized_crop(images.float(), boxes, size, flips)
    assert floats.dtype == torch.float32
    for image, result, box, flip in zip(images, floats, BOXES, flips, strict=True):
        expected = reference.resized_crop(image.float(), *box, size=[size, size], antialias=True)
        expected = reference.horizontal_flip(expected) if flip else expected
        assert torch.allclose(result, expected, atol=1e-3)


def test_resizing_each_takes_one_thread_and_leaves_their_number_as_it_was(
    make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = []
    interpolate = crops.functional.interpolate

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        inside.append(torch.get_num_threads())
        return interpolate(*args, **kwargs)

    monkeypatch.setattr(crops.functional, "interpolate", watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        resized_crop(make_images(4), torch.tensor([[0, 0, 10, 10]] * 4), 8)
        assert inside == [1, 1, 1, 1]
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError):
            resized_crop(make_images(4), torch.tensor([[0, 0, 0, 10]] * 4), 8)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("area_range", [(0.08, 1.0), (0.35, 1.0), (0.9, 1.0), (1.0, 1.0)])
def test_boxes_lie_inside_and_keep_area_and_aspect(area_range: tuple[float, float]) -> None:
    boxes = crop_boxes(4000, (147, 147), area_range, torch.Generator().manual_seed(0))
    assert boxes.dtype == torch.int64
    tops, lefts, heights, widths = boxes.unbind(1)
    assert (boxes[:, :2] >= 0).all()
    assert (tops + heights <= 147).all()
    assert (lefts + widths <= 147).all()
    # a box of 146 px may lie at the far edge too
    assert (tops + heights == 147).any()
    assert (lefts + widths == 147).any()
    narrow = widths == 146
    if narrow.sum() > 20:
        assert lefts[narrow].unique().tolist() == [0, 1]
    # sides are whole pixels: half a pixel of each is the tolerance
    aspect = widths / heights
    assert aspect.min() > 0.75 * 0.97
    assert aspect.max() < 4 / 3 * 1.03
    share = heights * widths / 147**2
    assert share.min() > area_range[0] * 0.97
    assert share.max() <= 1


@pytest.mark.parametrize("image_size", [(147, 147), (147, 80), (40, 147)])
def test_boxes_are_distributed_as_torchvision_draws_them(image_size: tuple[int, int]) -> None:
    count = 3000
    generator = torch.Generator().manual_seed(1)
    ours = crop_boxes(count, image_size, (0.35, 1.0), generator).double()
    torch.manual_seed(2)
    draw = RandomResizedCrop(128, scale=(0.35, 1.0), ratio=(3 / 4, 4 / 3))
    image = torch.zeros(1, *image_size)
    drawn = [draw.make_params([image]) for _ in range(count)]
    theirs = torch.tensor([[one[key] for key in ("top", "left", "height", "width")] for one in drawn]).double()
    # Kolmogorov and Smirnov: the largest gap between the two cumulative distributions, 0.1 % critical value
    critical = 1.95 * (2 / count) ** 0.5
    for column in range(4):
        at = torch.arange(0, 150).double()
        gap = [(values[:, column, None] <= at).double().mean(0) for values in (ours, theirs)]
        assert (gap[0] - gap[1]).abs().max() < critical


def test_where_no_box_fits_the_central_one_is_taken() -> None:
    # a box with the whole area of a wide image never has an aspect ratio up to 4/3
    boxes = crop_boxes(50, (30, 100), (1.0, 1.0), torch.Generator().manual_seed(0))
    assert boxes.unique(dim=0).tolist() == [[0, 30, 30, 40]]
    boxes = crop_boxes(50, (100, 30), (1.0, 1.0), torch.Generator().manual_seed(0))
    assert boxes.unique(dim=0).tolist() == [[30, 0, 40, 30]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_crops_as_the_cpu_does(make_images: MakeImages) -> None:
    images, boxes = make_images(len(BOXES), height=40, width=36), torch.tensor(BOXES)
    flips = torch.arange(len(BOXES)) % 2 == 0
    on_gpu = resized_crop(images.cuda(), boxes.cuda(), 24, flips.cuda())
    assert (on_gpu.cpu().int() - resized_crop(images, boxes, 24, flips).int()).abs().max() <= 1
    on_gpu = crop(images.cuda(), boxes[:, 0].cuda() - 4, boxes[:, 1].cuda() - 4, 20, flips.cuda())
    assert torch.equal(on_gpu.cpu(), crop(images, boxes[:, 0] - 4, boxes[:, 1] - 4, 20, flips))
