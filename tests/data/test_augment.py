from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vivace.data.augmentation.augment import CUTOUT_VALUE, Augment, alternating_flips, cutout, random_crop
from vivace.data.config import AugmentConfig
from vivace.errors import ConfigError

EVERYTHING = AugmentConfig(
    random_resized_crop=(0.35, 1.0),
    translate=2,
    flip="random",
    trivial_augment=True,
    color_jitter=0.4,
    cutout=6,
    mixup=0.2,
    cutmix=1.0,
)
ONE_AT_A_TIME = [
    AugmentConfig(),
    AugmentConfig(random_resized_crop=(0.35, 1.0)),
    AugmentConfig(translate=2),
    AugmentConfig(flip="random"),
    AugmentConfig(flip="alternating"),
    AugmentConfig(trivial_augment=True),
    AugmentConfig(color_jitter=0.4),
    AugmentConfig(cutout=6),
    AugmentConfig(mixup=0.2),
    AugmentConfig(cutmix=1.0),
    EVERYTHING,
]

MakeImages = Callable[..., Tensor]


def run(
    config: AugmentConfig, images: Tensor, *, size: int = 20, seed: int = 0, times_seen: int = 0, run_seed: int = 0
) -> tuple[Tensor, Tensor]:
    indices = torch.arange(len(images), device=images.device)
    augment = Augment(config, size=size, num_classes=7, seed=run_seed)
    generator = torch.Generator(images.device).manual_seed(seed)
    return augment(images, indices % 7, indices, times_seen=times_seen, generator=generator)


def name_of(config: AugmentConfig) -> str:
    changed = [name for name, value in vars(config).items() if value != getattr(AugmentConfig(), name)]
    return "+".join(changed) if len(changed) < 5 else "everything"


@pytest.mark.parametrize("config", ONE_AT_A_TIME, ids=name_of)
@pytest.mark.parametrize("store_size", [20, 26])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_keeps_dtype_range_and_strides(
    make_images: MakeImages, config: AugmentConfig, store_size: int, channels: int, device: str
) -> None:
    images = make_images(40, height=store_size, width=store_size, channels=channels).to(device)
    before = images.clone()
    augmented, targets = run(config, images)
    assert torch.equal(images, before)
    assert augmented.shape == (40, channels, 20, 20)
    assert augmented.device == targets.device == images.device
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    assert augmented.min() >= 0
    assert augmented.max() <= 255
    if config.mixup or config.cutmix:
        assert targets.dtype == torch.float32
        assert targets.shape == (40, 7)
        assert torch.allclose(targets.sum(1), torch.ones(40, device=device))
    else:
        assert augmented.dtype == torch.uint8
        assert targets.tolist() == [index % 7 for index in range(40)]
    # the same generator gives the same, another one something else
    again, targets_again = run(config, images)
    assert torch.equal(augmented, again)
    assert torch.equal(targets, targets_again)
    random = config.flip != "alternating" and (config != AugmentConfig() or store_size > 20)
    assert torch.equal(run(config, images, seed=1)[0], augmented) is not (random or store_size > 20)


def test_without_augmentation_the_images_come_out_untouched(make_images: MakeImages) -> None:
    images = make_images(4)
    augmented, _ = run(AugmentConfig(), images)
    assert augmented.data_ptr() == images.data_ptr()


def test_alternating_flips_show_every_image_both_ways_in_two_epochs(make_images: MakeImages) -> None:
    images = make_images(60)
    for times in (0, 1, 6, 7):
        first, second = (
            run(AugmentConfig(flip="alternating"), images, times_seen=number)[0] for number in (times, times + 1)
        )
        for image, one, other in zip(images, first, second, strict=True):
            assert sorted([torch.equal(one, image), torch.equal(other, image)]) == [False, True]
            assert torch.equal(one, other.flip(2))


def test_alternating_flips_ignore_the_order_and_the_generator() -> None:
    indices = torch.arange(1000)
    flips = alternating_flips(indices, 4, seed=3)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(alternating_flips(indices[order], 4, seed=3), flips[order])
    assert torch.equal(alternating_flips(indices, 6, seed=3), flips)
    assert torch.equal(alternating_flips(indices, 5, seed=3), ~flips)


def test_the_flipped_half_is_random() -> None:
    """Half of them; neighbours, every stride of a class folder and other seeds are unrelated."""
    count = 50_000
    indices = torch.arange(count)
    coins = {seed: alternating_flips(indices, 0, seed).double() * 2 - 1 for seed in (0, 1, 2, 7919, 2**31)}
    bound = 4.5 / count**0.5
    for seed, coin in coins.items():
        assert coin.mean().abs() < bound
        for lag in (1, 2, 3, 4, 7, 8, 16, 64, 128, 5000):
            assert (coin[lag:] * coin[:-lag]).mean().abs() < 1.2 * bound, f"lag {lag}, seed {seed}"
        for other, theirs in coins.items():
            if other != seed:
                for lag in range(4):
                    related = (coin[lag:] * theirs[: count - lag]).mean().abs()
                    assert related < 1.2 * bound, f"seeds {seed} and {other}"


def test_random_flips_have_probability_one_half_per_image(make_images: MakeImages) -> None:
    images = make_images(2).repeat(1000, 1, 1, 1)
    flipped, _ = run(AugmentConfig(flip="random"), images)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ mirrored).all()
    assert 880 < mirrored.sum() < 1120


@pytest.mark.parametrize(("side", "translate"), [(8, 2), (11, 0), (11, 1)])
def test_shifts_are_uniform_in_both_directions(side: int, translate: int) -> None:
    # each pixel encodes its position; the second pixel of a crop is never reflected, so it gives the crop's corner
    size, count = 8, 20_000
    images = torch.arange(side * side).view(1, 1, side, side).expand(count, 1, side, side).to(torch.uint8)
    windows = random_crop(images, size, torch.Generator().manual_seed(0), translate=translate)
    middle = windows[:, 0, size // 2, size // 2].long()
    tops, lefts = middle // side - size // 2, middle % side - size // 2
    choices = side - size + 2 * translate + 1
    assert tops.min() == lefts.min() == -translate
    assert tops.max() == lefts.max() == side - size + translate
    pairs = torch.bincount((tops + translate) * choices + lefts + translate, minlength=choices**2)
    expected = count / choices**2
    # chi squared with choices² - 1 degrees of freedom, five standard deviations
    chi_squared = float(((pairs - expected) ** 2 / expected).sum())
    assert chi_squared < choices**2 + 5 * (2 * choices**2) ** 0.5


def test_a_shift_after_a_random_resized_crop_is_not_ignored(make_images: MakeImages) -> None:
    images = make_images(8)
    plain, _ = run(AugmentConfig(random_resized_crop=(1.0, 1.0)), images)
    shifted, _ = run(AugmentConfig(random_resized_crop=(1.0, 1.0), translate=3), images)
    assert shifted.shape == plain.shape
    assert not torch.equal(shifted, plain)


def test_a_flip_with_a_random_resized_crop_mirrors_the_crop(make_images: MakeImages) -> None:
    images = make_images(12, height=26, width=26)
    even, odd = (
        run(AugmentConfig(random_resized_crop=(0.3, 1.0), flip="alternating"), images, times_seen=times)[0]
        for times in (0, 1)
    )
    assert torch.equal(even, odd.flip(3))


@pytest.mark.parametrize("side", [1, 4, 7, 16, 40])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutout_blanks_exactly_the_square_cut_off_at_the_border(side: int, dtype: torch.dtype, device: str) -> None:
    count, height, width = 300, 16, 12
    images = torch.full((count, 3, height, width), 9, dtype=dtype, device=device)
    blanked = cutout(images, side, torch.Generator(device).manual_seed(0))
    assert (images == 9).all()
    assert blanked.dtype == dtype
    assert blanked.is_contiguous(memory_format=torch.channels_last)
    # the same draws, and the square by its definition, image by image
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randint(0, height, (count, 1), generator=generator, device=device).flatten().tolist()
    columns = torch.randint(0, width, (count, 1), generator=generator, device=device).flatten().tolist()
    assert set(rows) == set(range(height))
    assert set(columns) == set(range(width))
    for image, row, column in zip(blanked, rows, columns, strict=True):
        expected = torch.full((3, height, width), 9, dtype=dtype)
        top, left = row - side // 2, column - side // 2
        expected[:, max(0, top) : top + side, max(0, left) : left + side] = CUTOUT_VALUE
        assert torch.equal(image.cpu(), expected)


def test_operations_are_applied_in_the_order_of_the_config(make_images: MakeImages) -> None:
    # cutout after the colours: the blank square keeps its value
    images = make_images(30)
    augmented, _ = run(AugmentConfig(color_jitter=0.9, trivial_augment=True, cutout=8), images)
    assert ((augmented == CUTOUT_VALUE).all(1).sum((1, 2)) >= 16).all()


def test_a_shift_by_the_whole_image_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Augment(AugmentConfig(translate=20), size=20, num_classes=2)
    assert str(caught.value) == "augment.translate is out of range: got 20. Give a value in [0, 19]."


def test_images_grow_from_the_start_size_to_the_full_one() -> None:
    augment = Augment(AugmentConfig(start_size=20, full_size_from=0.5), size=32, num_classes=7)
    sizes = [augment.size_at(step / 100) for step in range(101)]
    assert sizes[0] == 20
    assert sizes == sorted(sizes)
    assert set(sizes) == {20, 24, 28, 32}
    assert all(size == 32 for size in sizes[50:])
    # never above the full size, even if the difference is not a multiple of the step
    odd = Augment(AugmentConfig(start_size=21), size=30, num_classes=7)
    assert {odd.size_at(step / 100) for step in range(101)} <= {21, 25, 29, 30}
    assert Augment(AugmentConfig(), size=32, num_classes=7).size_at(0.0) == 32


@pytest.mark.parametrize(
    ("placed", "close"),
    [
        ({}, 1),
        ({"flip": "alternating", "translate": 2}, 1),
        # from the box itself rather than from the box at full size: noise, which these images are, comes out sharper
        ({"random_resized_crop": (0.4, 1.0)}, 12),
    ],
)
def test_small_images_are_the_large_ones_scaled_down(
    make_images: MakeImages, placed: dict[str, object], close: float
) -> None:
    images = make_images(6, height=32, width=32, channels=3)
    indices = torch.arange(6)

    def augmented(start_size: int | None) -> Tensor:
        config = AugmentConfig(start_size=start_size, **placed)  # type: ignore[arg-type]
        augment = Augment(config, size=32, num_classes=7)
        generator = torch.Generator().manual_seed(3)
        return augment(images, indices, indices, times_seen=0, generator=generator, progress=0.0)[0]

    small, large = augmented(16), augmented(None)
    assert small.shape == (6, 3, 16, 16)
    assert small.is_contiguous(memory_format=torch.channels_last)
    reference = torch.nn.functional.interpolate(large.float(), (16, 16), mode="bilinear", antialias=True)
    assert float((small.float() - reference).abs().mean()) < close
    # other crops would differ as much as other images
    assert float((small.float() - reference.flip(0)).abs().mean()) > 20


def test_a_blanked_square_covers_the_same_fraction_of_a_small_image(make_images: MakeImages) -> None:
    images = make_images(50, height=32, width=32, channels=3) // 4
    augment = Augment(AugmentConfig(cutout=16, start_size=16), size=32, num_classes=7)
    generator = torch.Generator().manual_seed(0)
    small = augment(images, torch.zeros(50).long(), torch.arange(50), times_seen=0, generator=generator, progress=0.0)[
        0
    ]
    assert int((small == CUTOUT_VALUE).all(1).sum((1, 2)).max()) == 8 * 8


def test_a_start_size_above_the_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment\.start_size"):
        Augment(AugmentConfig(start_size=40), size=32, num_classes=7)
