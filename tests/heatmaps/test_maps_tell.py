"""Heat maps mark what an answer rests on, and change when what was learnt is shuffled."""

from __future__ import annotations

import pytest
import torch
from planted import SIDE, SIZE, gradients_of, planted, trained_net
from scipy.stats import spearmanr
from torch import Tensor, nn

from vivace.heatmaps.attention import rollout
from vivace.heatmaps.layers import find_layer
from vivace.heatmaps.mapper import grad_cam
from vivace.heatmaps.sanity import deletion_auc, random_maps, randomised, rank_correlation, stretched

COUNT = 60


def maps_of(kind: str, model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """[B, side, side], as a bundle of the network gets them."""
    if kind == "vit":
        return rollout(model, images, classes, 8)
    _, values, gradients = gradients_of(model, images, classes)
    return grad_cam(values, gradients)


@pytest.mark.parametrize("kind", ["convnet", "vit"])
def test_maps_of_planted_squares_beat_random_masks_and_depend_on_the_weights(kind: str) -> None:
    model, (images, classes, places) = trained_net(kind), planted(COUNT, seed=2)
    answers = model(images).argmax(1)
    assert (answers == classes).float().mean() > 0.9
    maps = maps_of(kind, model, images, answers)
    side = maps.shape[-1]
    # the square is warmer than what is around it
    large, rows = stretched(maps, SIZE), torch.arange(SIZE)
    inside = [((rows >= place[:, None]) & (rows < place[:, None] + SIDE)).float() for place in places.T]
    square = inside[0][:, :, None] * inside[1][:, None, :]
    warmth = [(large * part).sum((1, 2)) / part.sum((1, 2)) for part in (square, 1 - square)]
    assert (warmth[0] > warmth[1]).float().mean() >= 0.95
    random = [deletion_auc(model, images, answers, random_maps(COUNT, side, seed=seed)) for seed in range(4)]
    better = deletion_auc(model, images, answers, maps) < torch.stack(random).mean(0)
    assert better.float().mean() >= 0.95
    # Adebayo et al. 2018: the maps of the same network that has learnt nothing are others
    shuffled = maps_of(kind, randomised(model), images, answers)
    assert rank_correlation(maps, shuffled).mean() < 0.5
    assert rank_correlation(maps, maps).mean() == pytest.approx(1)


def test_shuffled_weights_are_the_same_values_elsewhere_and_the_network_keeps_its_own() -> None:
    model = trained_net("convnet")
    before = model.head.weight.clone()
    other = randomised(model)
    assert torch.equal(model.head.weight, before)
    assert not torch.equal(other.head.weight, before)
    assert torch.equal(other.head.weight.flatten().sort().values, before.flatten().sort().values)
    assert find_layer(other, torch.randn(2, 3, SIZE, SIZE)) == find_layer(model, torch.randn(2, 3, SIZE, SIZE))


def test_the_deletion_area_is_small_for_a_map_that_marks_the_pixels_in_use() -> None:
    def network(images_BCHW: Tensor) -> Tensor:
        # surely class 0 while the first pixel is there, and undecided without it
        seen = 50.0 * images_BCHW[:, 0, 0, 0]
        return torch.stack([seen, torch.zeros_like(seen)], 1)

    images, classes = torch.ones(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)
    first, last = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    first[0, 0, 0], last[0, 0, 0] = 1.0, 0.0
    areas = deletion_auc(network, images, classes, torch.cat([first, last]), num_steps=16)
    # of 16 steps the first, or the last, goes from 1 to 0.5
    assert areas.tolist() == pytest.approx([0.5 + 0.25 / 16, 1 - 0.25 / 16])


def test_the_rank_correlation_is_scipys_and_0_for_a_map_that_marks_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(5, 4, 4, generator=generator).sub(0.4).clamp(min=0) for _ in range(2))
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(first, second, strict=True)]
    assert rank_correlation(first, second).tolist() == pytest.approx(expected)
    assert rank_correlation(first, torch.zeros(5, 4, 4)).tolist() == [0] * 5
