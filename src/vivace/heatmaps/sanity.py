"""Whether heat maps tell anything: removing what they mark changes the answer, and other weights change the maps.

Shape suffixes: B images, C channels, H, W pixels or positions of a map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["deletion_auc", "random_maps", "randomised", "rank_correlation", "stretched"]

NUM_STEPS = 16


@torch.no_grad()
def deletion_auc(
    network: Callable[[Tensor], Tensor],
    images_BCHW: Tensor,
    classes_B: Tensor,
    maps_BHW: Tensor,
    *,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
) -> Tensor:
    """float [B]: the mean probability of a class while pixels are removed, those first that a map marks most.

    Lower is better: the sooner the probability falls, the more of what it rests on was marked. network: normalised
    images → logits_BK. A removed pixel gets the value 0, the mean colour of the training images. maps_BHW: of any size,
    stretched to that of the images; pixels of one value are removed in random order.
    Source: Petsiuk, Das & Saenko 2018, arXiv:1806.07421.
    """
    num_pixels = images_BCHW.shape[-2] * images_BCHW.shape[-1]
    values_BP = stretched(maps_BHW, images_BCHW.shape[-1]).flatten(1).double()
    ties = torch.rand(values_BP.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order_BP = (values_BP + 1e-9 * ties.to(values_BP.device)).argsort(1, descending=True)
    place_BP = torch.empty_like(order_BP)
    place_BP.scatter_(1, order_BP, torch.arange(num_pixels, device=order_BP.device).expand_as(order_BP))
    place_B1HW = place_BP.view(len(images_BCHW), 1, *images_BCHW.shape[-2:])
    probs = []
    for step in range(num_steps + 1):
        left = images_BCHW.where(place_B1HW >= round(num_pixels * step / num_steps), 0.0)
        probs.append(network(left).float().softmax(1).gather(1, classes_B[:, None])[:, 0])
    area_B: Tensor = torch.trapezoid(torch.stack(probs), dx=1 / num_steps, dim=0)
    return area_B


def random_maps(count: int, side: int, *, seed: int) -> Tensor:
    """float32 [count, side, side] in [0, 1): as coarse as maps of that side, and without knowledge of the images."""
    return torch.rand(count, side, side, generator=torch.Generator().manual_seed(seed))


def stretched(maps_BHW: Tensor, side: int) -> Tensor:
    """The maps at the images' size, bilinear."""
    return functional.interpolate(maps_BHW[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]


def randomised(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy whose weights are shuffled, tensor by tensor: of the same scale, and without what was learnt.

    Source of the test: Adebayo et al. 2018, arXiv:1810.03292.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in shuffled.parameters():
            flat = parameter.flatten()
            parameter.copy_(flat[torch.randperm(len(flat), generator=generator).to(flat.device)].view_as(parameter))
    return shuffled


def rank_correlation(first_BHW: Tensor, second_BHW: Tensor) -> Tensor:
    """float64 [B]: Spearman's correlation of two maps of each image, in [-1, 1]; 0 where one of them is constant."""
    ranks = [_ranks(maps.flatten(1)) for maps in (first_BHW, second_BHW)]
    first, second = (one - one.mean(1, keepdim=True) for one in ranks)
    norms = first.norm(dim=1) * second.norm(dim=1)
    return (first * second).sum(1) / norms.where(norms > 0, 1.0)


def _ranks(values_BP: Tensor) -> Tensor:
    """float64 [B, P]: equal values share the mean of their ranks."""
    ranks = []
    for values_P in values_BP:
        _, inverse, counts = values_P.unique(return_inverse=True, return_counts=True)
        last = counts.cumsum(0).double()
        ranks.append((last - (counts - 1) / 2)[inverse])
    return torch.stack(ranks)
