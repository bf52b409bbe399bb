"""How far the heat maps of a network can be relied on, measured on some images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vivace.heatmaps.mapper import HeatMapper
from vivace.heatmaps.sanity import deletion_auc, random_maps, randomised, rank_correlation
from vivace.statistics.proportions import wilson_interval

__all__ = ["MapCheck", "check_maps"]

# whose mean area the map's is compared with: one alone may be lucky
NUM_RANDOM = 4
BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class MapCheck:
    """Two tests of heat maps, of the class that the network predicts."""

    num_images: int
    beat_random: float
    """Fraction of the images whose answer falls sooner when pixels are removed by the map than by random masks that are
    as coarse: a smaller deletion AUC (arXiv:1806.07421) ."""
    beat_random_low: float
    """Wilson's 95 % interval."""
    beat_random_high: float
    deletion_auc: float
    """Mean probability of the predicted class while pixels are removed; lower is better."""
    random_auc: float
    """The same by random masks."""
    correlation_randomised: float
    """Mean rank correlation with the maps of the same network with shuffled weights (arXiv:1810.03292), in [-1, 1]:
    near 1 the maps show the image and not what was learnt."""


def check_maps(mapper: HeatMapper, images_NHWC: np.ndarray, *, seed: int = 0, num_steps: int = 16) -> MapCheck:
    """Both tests on images as `Preprocess.load` gives them, at least one, by the float32 network.

    Costs (num_steps + 1) · 5 passes for each image. Raises what the mapper raises.
    """
    areas, random_areas, correlations = [], [], []
    other = randomised(mapper.model, seed=seed)
    for start in range(0, len(images_NHWC), BATCH_SIZE):
        images_BCHW = mapper.normalised(images_NHWC[start : start + BATCH_SIZE])
        with torch.no_grad():
            classes_B = mapper.model(images_BCHW).argmax(1)
        maps_BHW = mapper.of_normalised(images_BCHW, classes_B)
        options = {"num_steps": num_steps, "seed": seed + start}
        areas.append(deletion_auc(mapper.model, images_BCHW, classes_B, maps_BHW, **options))
        masks = [
            random_maps(len(images_BCHW), mapper.side, seed=seed + NUM_RANDOM * start + number).to(mapper.device)
            for number in range(NUM_RANDOM)
        ]
        random_areas.append(
            torch.stack([deletion_auc(mapper.model, images_BCHW, classes_B, mask, **options) for mask in masks]).mean(0)
        )
        correlations.append(rank_correlation(maps_BHW, mapper.of_normalised(images_BCHW, classes_B, model=other)))
    area_N, random_N = torch.cat(areas), torch.cat(random_areas)
    better = int((area_N < random_N).sum())
    low, high = wilson_interval(better, len(area_N))
    return MapCheck(
        num_images=len(area_N),
        beat_random=better / len(area_N),
        beat_random_low=low,
        beat_random_high=high,
        deletion_auc=float(area_N.mean()),
        random_auc=float(random_N.mean()),
        correlation_randomised=float(torch.cat(correlations).mean()),
    )
