from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import TrivialAugmentWide
from torchvision.transforms.v2 import functional as reference

from vivace.data.augmentation.trivial_augment import NUM_BINS, OPERATIONS, apply_operation, trivial_augment

MakeImages = Callable[..., Tensor]


def shear(image: Tensor, x: float, y: float) -> Tensor:
    degrees = [math.degrees(math.atan(value)) for value in (x, y)]
    return reference.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0])


def translate(image: Tensor, x: float, y: float) -> Tensor:
    return reference.affine(image, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=[0.0, 0.0])


# operation → (torchvision's implementation for one image, given the strength in [0, 1] and the sign; tolerance in
# levels of 255). The tolerance is 0 if pixels only move or Pillow rounds the same way, 1 where torchvision truncates
# and we round, and 2 for color, where torchvision also truncates the grey that it blends with.
REFERENCES: dict[str, tuple[int, Callable[[Tensor, float, float], Tensor]]] = {
    "identity": (0, lambda image, level, sign: image),
    "shear_x": (0, lambda image, level, sign: shear(image, 0.99 * level * sign, 0.0)),
    "shear_y": (0, lambda image, level, sign: shear(image, 0.0, 0.99 * level * sign)),
    "translate_x": (0, lambda image, level, sign: translate(image, 32 * level * sign, 0)),
    "translate_y": (0, lambda image, level, sign: translate(image, 0, 32 * level * sign)),
    "rotate": (0, lambda image, level, sign: reference.rotate(image, 135 * level * sign)),
    "brightness": (1, lambda image, level, sign: reference.adjust_brightness(image, 1 + 0.99 * level * sign)),
    "color": (2, lambda image, level, sign: reference.adjust_saturation(image, 1 + 0.99 * level * sign)),
    "contrast": (1, lambda image, level, sign: reference.adjust_contrast(image, 1 + 0.99 * level * sign)),
    "sharpness": (1, lambda image, level, sign: reference.adjust_sharpness(image, 1 + 0.99 * level * sign)),
    "posterize": (0, lambda image, level, sign: reference.posterize(image, bits=8 - round(6 * level))),
    "solarize": (0, lambda image, level, sign: reference.solarize(image, threshold=255 - 255 * level)),
    "autocontrast": (1, lambda image, level, sign: reference.autocontrast(image)),
    "equalize": (0, lambda image, level, sign: reference.equalize(image)),
}


def every_strength() -> tuple[Tensor, Tensor]:
    """levels and signs, each level with both signs."""
    levels = (torch.arange(NUM_BINS) / (NUM_BINS - 1)).repeat(2)
    return levels, torch.tensor([1.0] * NUM_BINS + [-1.0] * NUM_BINS)


def test_every_operation_has_a_reference_and_is_one_of_torchvisions() -> None:
    assert list(OPERATIONS) == list(REFERENCES)
    theirs = [name.lower() for name in TrivialAugmentWide._AUGMENTATION_SPACE]
    assert [name.replace("_", "") for name in OPERATIONS] == theirs


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("channels", "height", "width", "smooth"), [(3, 32, 32, True), (1, 21, 27, False)])
def test_an_operation_agrees_with_torchvision_for_each_image_and_strength(
    make_images: MakeImages, name: str, channels: int, height: int, width: int, smooth: bool
) -> None:
    # sides both even or both odd; otherwise a quarter turn samples exactly between two pixels, and rounding decides
    levels, signs = every_strength()
    images = make_images(len(levels), height=height, width=width, channels=channels, smooth=smooth)
    before = images.clone()
    changed = apply_operation(name, images, levels, signs)
    assert changed.dtype == torch.uint8
    assert changed.shape == images.shape
    assert torch.equal(images, before)
    tolerance, expected = REFERENCES[name]
    for index in range(len(images)):
        # the strength as an exact number: torchvision's own table has 15.999999 for 16
        level = index % NUM_BINS / (NUM_BINS - 1)
        gap = (changed[index].int() - expected(images[index], level, float(signs[index])).int()).abs()
        assert gap.max() <= tolerance, f"{name} at level {level:.2f}, sign {signs[index]}"


@pytest.mark.parametrize("name", OPERATIONS)
def test_float_pixels_are_changed_like_integer_ones(make_images: MakeImages, name: str) -> None:
    levels, signs = every_strength()
    images = make_images(len(levels), smooth=True)
    floats = images.float()
    changed = apply_operation(name, floats, levels, signs)
    assert changed.dtype == torch.float32
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert torch.equal(floats, images.float())
    assert (changed - apply_operation(name, images, levels, signs)).abs().max() <= 0.51


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "contrast", "sharpness"])
def test_a_flat_image_stays_as_it_is(name: str) -> None:
    images = torch.full((3, 1, 12, 12), 77, dtype=torch.uint8)
    changed = apply_operation(name, images, torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 1.0, -1.0]))
    assert torch.equal(changed, images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_image_of_a_batch_is_changed_by_its_own_draw(
    make_images: MakeImages, dtype: torch.dtype, device: str
) -> None:
    count = 500
    images = make_images(count, smooth=True).to(dtype).to(device)
    changed = trivial_augment(images, torch.Generator(device).manual_seed(5))
    assert changed.dtype == dtype
    assert changed.is_contiguous(memory_format=torch.channels_last)
    # the same draws, image by image
    generator = torch.Generator(device).manual_seed(5)
    which = torch.randint(0, len(OPERATIONS), (count,), generator=generator, device=device).tolist()
    levels = torch.randint(0, NUM_BINS, (count,), generator=generator, device=device) / (NUM_BINS - 1)
    signs = torch.randint(0, 2, (count,), generator=generator, device=device) * 2.0 - 1
    for index, number in enumerate(which):
        one = slice(index, index + 1)
        expected = apply_operation(list(OPERATIONS)[number], images[one], levels[one], signs[one])
        gap = (changed[one].float() - expected.float()).abs().max()
        assert gap <= 0.001, list(OPERATIONS)[number]


def test_every_operation_is_drawn_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, int] = {}

    def count(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def operation(images: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
            drawn[name] = len(images)
            assert set(signs.tolist()) == {-1.0, 1.0}
            assert len(levels.unique()) == NUM_BINS
            return images

        return operation

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, count(name))
    images = torch.zeros(14_000, 1, 1, 1, dtype=torch.uint8)
    trivial_augment(images, torch.Generator().manual_seed(0))
    assert sum(drawn.values()) == 14_000
    assert all(abs(number - 1000) < 5 * 1000**0.5 for number in drawn.values())


def test_the_seed_reproduces_the_draws_and_the_images_given_stay(make_images: MakeImages) -> None:
    images = make_images(50)
    before = images.clone()
    first, again, other = (trivial_augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


@pytest.mark.parametrize("count", [1, 2])
def test_small_batches_work(make_images: MakeImages, count: int) -> None:
    assert trivial_augment(make_images(count), torch.Generator().manual_seed(0)).shape == (count, 3, 20, 20)
