"""An augmentation of the user's: what it is given, what it may return, its random numbers and its name."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vivace.data.augmentation.augment import Augment
from vivace.data.augmentation.own import OwnAugmentation
from vivace.data.config import AugmentConfig
from vivace.errors import ConfigError

IMAGES = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def inverted(images_BCHW: Tensor) -> Tensor:
    return 255 - images_BCHW


def called(function: Callable[[Any], Any], images: Tensor = IMAGES, seed: int = 0) -> Tensor:
    return OwnAugmentation(function)(images, torch.Generator().manual_seed(seed))


def test_it_is_given_uint8_at_the_size_of_the_network_and_its_answer_is_trained_on() -> None:
    seen: list[Tensor] = []

    def darker(images_BCHW: Tensor) -> Tensor:
        seen.append(images_BCHW)
        return images_BCHW // 2

    config = AugmentConfig(flip="random", cutout=2)
    stored = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    labels = torch.arange(4)
    images, targets = Augment(config, size=8, num_classes=4, own=OwnAugmentation(darker))(
        stored, labels, labels, times_seen=0, generator=torch.Generator().manual_seed(0)
    )
    assert (seen[0].dtype, seen[0].shape) == (torch.uint8, (4, 3, 8, 8))
    assert torch.equal(images, seen[0] // 2)
    assert torch.equal(targets, labels)


def test_mixup_comes_after_it() -> None:
    def black(images_BCHW: Tensor) -> Tensor:
        return torch.zeros_like(images_BCHW)

    labels = torch.arange(4)
    images, targets = Augment(AugmentConfig(mixup=1.0), size=8, num_classes=4, own=OwnAugmentation(black))(
        IMAGES, labels, labels, times_seen=0, generator=torch.Generator().manual_seed(0)
    )
    assert not images.any()
    assert targets.shape == (4, 4)


def test_images_that_it_changes_in_place_are_a_copy() -> None:
    before = IMAGES.clone()
    assert torch.equal(called(lambda images: images.fill_(7)), torch.full_like(IMAGES, 7))
    assert torch.equal(IMAGES, before)


def test_floats_on_the_scale_of_pixels_are_taken() -> None:
    noisy = called(lambda images: images.float() + 10 * torch.randn(images.shape))
    assert noisy.dtype == torch.float32
    assert float(noisy.min()) < 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: images[:2], r"another shape or device: got uint8 \(2, 3, 8, 8\) on cpu, expected"),
        (lambda images: images.permute(0, 2, 3, 1), r"got uint8 \(4, 8, 8, 3\)"),
        (lambda images: images.double(), r"another dtype: got float64 \(4, 3, 8, 8\)"),
        (lambda images: images.numpy(), r"returned no tensor: got ndarray, expected"),
        (lambda images: None, r"returned no tensor: got NoneType"),
        (lambda images: images.float() * float("nan"), r"NaN, Inf or values far from 0\.\.255: got nan"),
        (lambda images: images.float() / 0, r"NaN, Inf or values far"),
        (lambda images: images.float() / 255, r"on another scale: got 0.* to .*, expected 0 to 255"),
        (lambda images: images @ images.no_such_thing, r"failed on uint8 \(4, 3, 8, 8\) on cpu: AttributeError"),
        (lambda: IMAGES, r"failed on uint8 .*: TypeError"),
    ],
)
def test_another_answer_is_refused_with_what_was_got(function: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        called(function)


@pytest.mark.parametrize("given", [5, "blur", {"flip": "random"}])
def test_what_can_not_be_called_is_refused(given: object) -> None:
    with pytest.raises(ConfigError, match="augment is no function: got"):
        OwnAugmentation(given)


def test_a_class_in_place_of_an_object_is_refused() -> None:
    class Blur:
        def __call__(self, images_BCHW: Tensor) -> Tensor:
            return images_BCHW

    with pytest.raises(ConfigError, match=r"augment is a class: got Blur\. Give an object: Blur\(\)"):
        OwnAugmentation(Blur)


def test_random_numbers_follow_from_the_generator_and_the_programs_own_are_left_alone() -> None:
    def noise(images_BCHW: Tensor) -> Tensor:
        values = torch.rand(()) + np.random.rand() + random.random()
        return images_BCHW.float() * float(values)

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    first = called(noise)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert random.getstate() == before[2]
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert torch.equal(called(noise), first)
    assert not torch.equal(called(noise, seed=1), first)


def test_it_draws_other_numbers_for_each_batch() -> None:
    own, generator = OwnAugmentation(lambda images: images.float() * torch.rand(())), torch.Generator().manual_seed(0)
    assert not torch.equal(own(IMAGES, generator), own(IMAGES, generator))


def test_a_name_tells_where_a_function_is_defined_and_changes_with_its_source_and_parameters() -> None:
    name = OwnAugmentation(inverted).name
    assert name.startswith(f"{__name__}.inverted sha256:")
    assert OwnAugmentation(inverted).name == name

    def scaled(images_BCHW: Tensor, by: float) -> Tensor:
        return images_BCHW.float() * by

    half, third = (OwnAugmentation(functools.partial(scaled, by=by)).name for by in (1 / 2, 1 / 3))
    assert half != third
    assert half == OwnAugmentation(functools.partial(scaled, by=1 / 2)).name
    assert OwnAugmentation(lambda images: images + 1).name != OwnAugmentation(lambda images: images + 2).name

    class Scale(torch.nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = by

        def extra_repr(self) -> str:
            return f"by={self.by}"

        def forward(self, images_BCHW: Tensor) -> Tensor:
            return images_BCHW.float() * self.by

    assert OwnAugmentation(Scale(0.5)).name == OwnAugmentation(Scale(0.5)).name != OwnAugmentation(Scale(0.6)).name
    # no address of an object is part of it
    first, second = (OwnAugmentation(functools.partial(scaled, by=object())).name for _ in range(2))
    assert first == second


def test_functions_without_a_source_have_a_name_too() -> None:
    made: dict[str, Any] = {}
    exec("def typed(images):\n    return images", made)
    exec("def other(images):\n    return images + 1", made)
    digests = [OwnAugmentation(made[name]).name.partition(" ")[2] for name in ("typed", "other")]
    assert digests[0] != digests[1]
    assert "sha256:" in OwnAugmentation(torch.relu).name


def test_transforms_of_torchvision_are_taken() -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    compose = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.GaussianBlur(3)])
    assert torch.equal(called(compose), called(compose))
    assert OwnAugmentation(compose).name != OwnAugmentation(transforms.GaussianBlur(3)).name
