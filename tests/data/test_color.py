from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from vivace.data.augmentation.color import adjust, color_jitter, grey

MakeImages = Callable[..., Tensor]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("contiguous", [torch.channels_last, torch.contiguous_format])
def test_adjusting_agrees_with_torchvision_for_each_image(
    make_images: MakeImages, channels: int, contiguous: torch.memory_format
) -> None:
    images = make_images(30, channels=channels).contiguous(memory_format=contiguous)
    factors = 0.3 + 1.4 * torch.rand(3, 30, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    floats = adjust(images.float(), *factors)
    rounded = adjust(images, *factors)
    for index in range(30):
        brightness, contrast, saturation = factors[:, index].flatten().tolist()
        # on the 0..1 scale of torchvision's float images, where it rounds nothing
        expected = reference.adjust_brightness(images[index] / 255, brightness)
        expected = reference.adjust_contrast(expected, contrast)
        if channels == 3:
            expected = reference.adjust_saturation(expected, saturation)
        assert torch.allclose(floats[index], 255 * expected, atol=0.01)
        assert (rounded[index] - 255 * expected).abs().max() <= 0.51
    assert rounded.dtype == torch.uint8
    assert rounded.is_contiguous(memory_format=torch.channels_last)


def test_factors_of_one_change_nothing(make_images: MakeImages) -> None:
    images = make_images(5)
    ones = torch.ones(5, 1, 1, 1)
    assert torch.equal(adjust(images, ones, ones, ones), images)


def test_the_images_given_are_not_changed(make_images: MakeImages) -> None:
    for images in (make_images(5), make_images(5).float(), make_images(5).float().contiguous()):
        before = images.clone()
        color_jitter(images, 0.4, torch.Generator().manual_seed(0))
        assert torch.equal(images, before)


def test_grey_is_a_weighted_sum_of_the_channels() -> None:
    pixels = torch.tensor([255.0, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255]).view(4, 3, 1, 1)
    expected = torch.tensor([76.22, 149.69, 29.07, 254.97])
    assert torch.allclose(grey(pixels).flatten(), expected, atol=0.01)
    assert torch.equal(grey(pixels[:, :1]), pixels[:, :1])


def test_factors_are_uniform_around_one() -> None:
    # uniform grey has no contrast and no saturation, so only the brightness factor acts on it
    images = torch.full((20_000, 3, 1, 1), 100.0)
    values = color_jitter(images, 0.4, torch.Generator().manual_seed(0))[:, 0].flatten() / 100
    assert values.min() >= 0.6 - 1e-3
    assert values.max() <= 1.4 + 1e-3
    counts = torch.histc(values, 8, 0.6, 1.4)
    assert (counts - 2500).abs().max() < 5 * 2500**0.5


def test_the_seed_reproduces_the_jitter(make_images: MakeImages, device: str) -> None:
    images = make_images(8).to(device)
    first, again, other = (color_jitter(images, 0.4, torch.Generator(device).manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # each image of a batch has its own factors
    same = color_jitter(images[:1].expand(8, -1, -1, -1), 0.4, torch.Generator(device).manual_seed(1))
    assert len(same.flatten(1).unique(dim=0)) == 8
