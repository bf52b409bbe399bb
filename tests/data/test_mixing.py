from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vivace.data.augmentation.mixing import _beta, cutmix, mix, mixup

MakeImages = Callable[..., Tensor]


def test_mixup_is_the_weighted_mean_of_two_images(make_images: MakeImages) -> None:
    images = make_images(6)
    order = torch.tensor([3, 0, 1, 2, 5, 4])
    mixed = mixup(images, order, 0.3)
    assert mixed.dtype == torch.float32
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    for index, other in enumerate(order.tolist()):
        expected = 0.3 * images[index].numpy() + 0.7 * images[other].numpy()
        assert torch.allclose(mixed[index], torch.from_numpy(expected).float(), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.0), (0.99, 0.3)])
def test_cutmix_pastes_one_box_and_reports_its_area(
    make_images: MakeImages, dtype: torch.dtype, share: float, centre: tuple[float, float]
) -> None:
    images = make_images(6, height=24, width=20).to(dtype)
    order = torch.tensor([3, 0, 1, 2, 5, 4])
    before = images.clone()
    mixed, kept = cutmix(images, order, share, centre)
    assert torch.equal(images, before)
    assert mixed.dtype == dtype
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    # per pixel, by the box's definition: is it within half a side of the centre?
    side = (1 - share) ** 0.5
    num_pasted = 0
    for row in range(24):
        for column in range(20):
            inside = round(centre[0] * 24 - side * 12) <= row < round(centre[0] * 24 + side * 12) and round(
                centre[1] * 20 - side * 10
            ) <= column < round(centre[1] * 20 + side * 10)
            num_pasted += inside
            source = images[order] if inside else images
            assert torch.equal(mixed[:, :, row, column], source[:, :, row, column])
    assert kept == pytest.approx(1 - num_pasted / (24 * 20))
    if centre == (0.5, 0.5):
        # not clipped: up to rounding of its sides, the area is the drawn fraction
        assert kept == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(0.2, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_labels_are_mixed_as_the_pixels_are(
    make_images: MakeImages, mixup_alpha: float, cutmix_alpha: float, device: str
) -> None:
    # class k is an image of k everywhere: the mean pixel must be the mean label
    labels = torch.arange(8, device=device)
    images = labels.view(8, 1, 1, 1).expand(8, 3, 16, 16).float().contiguous(memory_format=torch.channels_last)
    for seed in range(20):
        mixed, soft = mix(
            images,
            labels,
            num_classes=10,
            mixup_alpha=mixup_alpha,
            cutmix_alpha=cutmix_alpha,
            generator=torch.Generator(device).manual_seed(seed),
        )
        assert soft.shape == (8, 10)
        assert soft.dtype == torch.float32
        assert torch.allclose(soft.sum(1), torch.ones(8, device=device))
        expected = soft @ torch.arange(10.0, device=device)
        assert torch.allclose(mixed.mean((1, 2, 3)), expected, atol=1e-4)


def test_with_both_on_one_is_chosen_at_random_per_batch(make_images: MakeImages) -> None:
    images, labels = make_images(4), torch.arange(4)
    kinds = [
        mix(
            images,
            labels,
            num_classes=4,
            mixup_alpha=1.0,
            cutmix_alpha=1.0,
            generator=torch.Generator().manual_seed(seed),
        )[0].dtype
        for seed in range(200)
    ]
    num_mixup = kinds.count(torch.float32)
    assert num_mixup + kinds.count(torch.uint8) == 200
    assert 70 < num_mixup < 130


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 2.0, 8.0])
def test_the_mixing_weight_is_drawn_from_beta(alpha: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    shares = [_beta(alpha, generator) for _ in range(3000)]
    assert min(shares) >= 0
    assert max(shares) <= 1
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_a_tiny_alpha_gives_a_number() -> None:
    images, labels = torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])
    for seed in range(50):
        _, soft = mix(
            images,
            labels,
            num_classes=2,
            mixup_alpha=1e-6,
            cutmix_alpha=0.0,
            generator=torch.Generator().manual_seed(seed),
        )
        assert soft.isfinite().all()
