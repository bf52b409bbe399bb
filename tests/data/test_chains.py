"""Mixtures of chains: what each operation gives, and what a mixture keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vivace.config import override
from vivace.data.augmentation import chains
from vivace.data.augmentation.augment import Augment
from vivace.data.augmentation.chains import MIXTURES, mix_chains
from vivace.data.config import AugmentConfig
from vivace.errors import ConfigError
from vivace.robustness.corruptions.constants import FAMILIES, LEFT_OUT


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int = 8, side: int = 16) -> Tensor:
    """Smooth colour images, uint8 channels_last."""
    draw = torch.rand(count, 3, 4, 4, generator=generator(1))
    images = torch.nn.functional.interpolate(draw, (side, side), mode="bicubic").clamp(0, 1) * 255
    return images.to(torch.uint8).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_keeps_shape_dtype_and_the_given_images(name: str) -> None:
    images = photos()
    before = images.clone()
    for given in (images, images.float()):
        mixed = mix_chains(given, MIXTURES[name], generator())
        assert (mixed.shape, mixed.dtype) == (given.shape, given.dtype)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert float(mixed.min()) >= 0
        assert float(mixed.max()) <= 255
        assert bool((mixed.float() != given.float()).flatten(1).any(1).all())
    assert torch.equal(images, before)
    again = [mix_chains(images, MIXTURES[name], generator(7)) for _ in range(2)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], mix_chains(images, MIXTURES[name], generator(8)))


def test_chains_that_change_nothing_give_the_images() -> None:
    images = photos()
    assert torch.equal(mix_chains(images, [lambda x, draw: x], generator()), images)


def test_an_image_is_mixed_with_three_chains_of_one_to_three_operations() -> None:
    """An operation that adds 1 counts itself: chains add 1 to 3, and the mixture lies between the image and 3 more."""
    images = torch.full((4000, 1, 1, 1), 100.0)
    added = (mix_chains(images, [lambda x, draw: x + 1], generator()) - 100).flatten()
    assert float(added.min()) >= 0
    assert float(added.max()) <= 3
    # the mean of m is 1/2, that of a chain's length 2
    assert float(added.mean()) == pytest.approx(1.0, abs=0.05)


def test_each_image_draws_its_own_operations() -> None:
    images = torch.full((300, 1, 1, 1), 100.0)
    mixed = mix_chains(images, [lambda x, draw: x * 0, lambda x, draw: x * 0 + 255], generator()).flatten()
    assert float(mixed.min()) < 60
    assert float(mixed.max()) > 180


@pytest.mark.parametrize("number", range(len(MIXTURES["prime"])))
def test_a_smooth_change_keeps_what_is_flat_or_in_the_middle(number: int) -> None:
    """A flat image has no detail to filter or to move, and curves keep black and white."""
    operation = MIXTURES["prime"][number]
    if operation is chains._recoloured:
        for value in (0.0, 255.0):
            flat = torch.full((4, 3, 8, 8), value)
            torch.testing.assert_close(operation(flat, generator()), flat, atol=0.1, rtol=0)
    else:
        flat = torch.full((4, 3, 8, 8), 93.0)
        torch.testing.assert_close(operation(flat, generator()), flat, atol=0.05, rtol=0)
    assert not torch.equal(operation(photos().float(), generator()), photos().float())


def test_a_random_filter_is_a_correlation_with_reflected_borders() -> None:
    images = photos(2, 8).float()
    draw = generator(3)
    size = chains.FILTER_SCALE * torch.rand(2, 1, 1, 1, generator=draw)
    filters = size * torch.randn(2, 3, 3, 3, generator=draw) / 3
    filters[:, :, 1, 1] += 1
    mean = images.mean((2, 3), keepdim=True)
    padded = torch.nn.functional.pad(images - mean, (1, 1, 1, 1), mode="reflect").reshape(1, 6, 10, 10)
    expected = torch.nn.functional.conv2d(padded, filters.view(6, 1, 3, 3), groups=6).view(2, 3, 8, 8) + mean
    torch.testing.assert_close(chains._filtered(images, generator(3)), expected, atol=1e-2, rtol=1e-4)


def test_rotation_and_shift_move_as_far_as_augmix_says() -> None:
    """A shift by a tenth of a third of the side at most; a rotation by 9 degrees at most."""
    images = torch.zeros(200, 1, 31, 31)
    images[:, :, 15, 15] = 255
    x = torch.arange(31.0) - 15
    shifted = MIXTURES["augmix"][-2](images, generator())
    places = (shifted.sum(2) * x).sum(2) / shifted.sum((2, 3))
    assert 2.0 < float(places.abs().max()) <= 31 * 0.1 + 0.01
    images = torch.zeros(200, 1, 31, 31)
    images[:, :, 15, 27] = 255
    turned = chains._rotate(images, generator())
    heights = (turned.sum(3) * x).sum(2) / turned.sum((2, 3))
    # 12 px from the centre
    assert 1.0 < float(heights.abs().max()) <= 12 * torch.tensor(9.0).deg2rad().sin() + 0.3


def test_no_operation_is_a_corruption_that_is_measured() -> None:
    corruptions = {name for names in FAMILIES.values() for name in names} | set(LEFT_OUT)
    for operations in MIXTURES.values():
        for operation in operations:
            name = operation.__name__.strip("_")
            assert not any(name.startswith(word) for full in corruptions for word in full.split("_"))
    used = {"autocontrast", "equalize"}
    assert not used & corruptions


def test_a_recipe_takes_a_mixture() -> None:
    images, labels = photos(), torch.arange(8)
    config = override(AugmentConfig(), {"mix": "prime"})
    mixed, targets = Augment(config, size=16, num_classes=8)(
        images, labels, labels, times_seen=0, generator=generator()
    )
    assert torch.equal(targets, labels)
    assert torch.equal(mixed, mix_chains(images, MIXTURES["prime"], generator()))
    with pytest.raises(ConfigError, match=r"augment.mix is unknown: got 'augmxi'\. Did you mean 'augmix'"):
        AugmentConfig(mix="augmxi")  # type: ignore[arg-type]
