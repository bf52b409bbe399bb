"""The recipe `private` (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vivace.data.config import AugmentConfig, DataConfig
from vivace.models.config import ModelConfig
from vivace.optim.config import OptimizerConfig, ScheduleConfig
from vivace.training.recipes.datafacts import DataFacts
from vivace.training.recipes.privacy import PrivacyConfig
from vivace.training.recipes.recipe import Recipe

__all__ = ["SCATTERING", "private_changes", "private_recipe"]

SCATTERING = "scatter_linear"
# the usual statistics of photos, which are no measurement of the user's
MEAN, STD = 0.5, 0.25
EPSILON = 3.0
# with gradients clipped to 1, on features whose length is about 1; the first is about that of arXiv:2011.11660
LR_SCATTERING, LR_PRETRAINED = 20.0, 5.0
# of the training images, those in a step on average
SAMPLE_RATE = 0.25


def private_recipe(facts: DataFacts, network: str | None) -> Recipe:
    """A linear head by DP-SGD on features of `network`, with its published weights; None: of wavelet scattering."""
    scattering = network is None
    return Recipe(
        name="private",
        model=ModelConfig(name=SCATTERING) if network is None else ModelConfig(name=network, pretrained=True),
        data=DataConfig(
            size=(32 if facts.side <= 40 else 64) if scattering else None,
            mean=(MEAN,) * facts.channels if scattering else None,
            std=(STD,) * facts.channels if scattering else None,
        ),
        augment=AugmentConfig(flip="random" if facts.channels == 3 else "none"),
        optimizer=OptimizerConfig(name="sgd", lr=LR_SCATTERING if scattering else LR_PRETRAINED, momentum=0.9),
        schedule=ScheduleConfig(name="constant"),
        privacy=PrivacyConfig(epsilon=EPSILON, delta=_delta(facts.num_images)),
        epochs=0,
        batch_size=max(2, round(SAMPLE_RATE * facts.num_images)),
        precision="fp32",
    )


def _delta(num_images: int) -> float:
    """1e-5, and less where that is not well below one in the number of images."""
    exponent = 5
    while num_images > 0.5 * 10**exponent:
        exponent += 1
    return float(f"1e-{exponent}")


def private_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes to `private` that follow from others: published weights have statistics and a size of their own."""
    pretrained = changes.get("model.pretrained")
    if pretrained:
        return {"data.mean": None, "data.std": None, "data.size": None, "optimizer.lr": LR_PRETRAINED}
    if pretrained is False and "model.name" not in changes:
        return {"model.name": SCATTERING}
    return {}
