"""The named recipe for a network that is to withstand attacks (no torch here)."""

from __future__ import annotations

from typing import Any

from vivace.data.config import AugmentConfig, DataConfig
from vivace.models.config import ModelConfig
from vivace.optim.config import OptimizerConfig, ScheduleConfig
from vivace.training.recipes.attack import AttackConfig
from vivace.training.recipes.datafacts import DataFacts
from vivace.training.recipes.recipe import LossConfig, Recipe

__all__ = ["robust"]

# from so many images on batches are large; below, a run has at least so many steps
MANY, MIN_STEPS = 20_000, 600


def robust(facts: DataFacts) -> Recipe:
    """From scratch, against attacks within L∞ 8/255 (photos: 4/255): adversarial training that a probe watches over.

    docs/recipes.md has the command, the time and the accuracies on CIFAR-10.
    """
    batch_size = 500 if facts.num_images >= MANY else 128
    epochs = 20 if facts.num_images >= MANY else min(120, max(20, -(-MIN_STEPS * batch_size // facts.num_images)))
    size = facts.small_size if facts.small else 128
    # smooth activations: their gradients make better attacks, and more robust networks (arXiv:2006.14536)
    if facts.small:
        # no whitening: it amplifies what varies least, which is what an attacker changes
        arguments: dict[str, Any] = {
            "widths": [64, 256, 512],
            "depth": [2, 3, 3],
            "residual": True,
            "activation": "silu",
        }
        model = ModelConfig(
            name="fast_cnn", arguments={**arguments, "num_directions": 12, "padding": 0, "whitening": False}
        )
        # without decay 30 epochs learn the images by heart: of 60 % under attack, 37 % are left on others
        rates: dict[str, Any] = {
            "lr": 0.1,
            "momentum": 0.6,
            "aux_lr": 0.5,
            "bias_lr_factor": 16.0,
            "weight_decay": 0.02,
        }
    else:
        model = ModelConfig(name="fast_photo", arguments={"activation": "silu"})
        rates = {"lr": 0.02, "momentum": 0.9, "aux_lr": 0.005}
    return Recipe(
        name="robust",
        model=model,
        data=DataConfig(size=size),
        # of full size from the start: what withstands an attack on smaller images does not on these
        augment=AugmentConfig(flip="random" if facts.channels == 3 else "none", translate=4 if facts.small else 2),
        optimizer=OptimizerConfig(name="muon", nesterov=True, **rates),
        schedule=ScheduleConfig(name="trapezoid", warmup=0.1, cooldown=0.9),
        loss=LossConfig(label_smoothing=0.1),
        attack=AttackConfig(eps=8.0 if facts.small else 4.0),
        monitor="robust",
        ema_decay=0.995,
        # a second program, for the attack, would be compiled too
        compile=False,
        calibrate=True,
        epochs=epochs,
        batch_size=batch_size,
    )
