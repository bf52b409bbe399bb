"""What a recipe says of differential privacy (no torch here)."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vivace.config import check_choice, check_range
from vivace.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from vivace.training.recipes.recipe import Recipe

__all__ = ["PrivacyConfig", "check_private", "check_private_run"]

# below, the accountant runs out of digits or memory, and the noise leaves nothing to learn
MIN_EPSILON, MIN_DELTA = 0.01, 1e-12
# beyond, 32-bit floats round noise and gradients away
MIN_NORM, MAX_NORM = 1e-6, 1e6
# field → (the value at which a private run has it, why)
UNUSED = {
    # before clip_grad_norm, which it implies
    "loss.class_weights": ("none", "its loss is plain cross-entropy"),
    "finetune.head": (False, "that head would be solved without noise"),
    "epochs": (0, "its steps are those of privacy.epochs"),
    "early_stopping": (None, "choosing an epoch on images held out of the training images is not private"),
    "calibrate": (False, "a temperature of images held out of the training images is not private"),
    "ema_decay": (None, "the last half of its steps is averaged"),
    "clip_grad_norm": (None, "the gradient of each image is clipped to privacy.clip_norm"),
    "head_epochs": (0, "its steps are those of privacy.epochs"),
    "freeze_after": ((), "nothing but the head is trained"),
    "fake_quant": (False, "its noise is found for one linear layer in float32"),
    "distill.teacher": (None, "a teacher that has seen the images tells of them"),
    "model.start_from": (None, "a run that has seen the images tells of them"),
    "augment.mixup": (0.0, "a mixture of two images has no gradient of one image"),
    "augment.cutmix": (0.0, "a mixture of two images has no gradient of one image"),
    "attack.eps": (0.0, "an attack looks at images without noise"),
    "optimizer.sam": (0.0, "a sharpness-aware step takes a gradient without noise"),
    "micro_batch_size": (None, "it takes few images at a time anyway"),
    "loss.name": ("cross_entropy", "its loss is plain cross-entropy"),
    "loss.label_smoothing": (0.0, "its loss is plain cross-entropy"),
    "loss.focal_gamma": (0.0, "its loss is plain cross-entropy"),
    "loss.self_distillation": (0.0, "its loss is plain cross-entropy"),
    "focus.share": (1.0, "images are drawn at random, all with the same probability"),
    "data.balanced_sampling": (False, "images are drawn at random, all with the same probability"),
}


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Training with differential privacy: DP-SGD (arXiv:1607.00133), whose noise is found from epsilon and delta.

    The promise is about training images that are added or removed, one at a time, and about the weights alone.
    """

    epsilon: float | None = None
    """Of the promise (epsilon, delta), [0.01, 100]: what an image changes of the odds of any outcome, as e^epsilon at
    most. None: training is not private."""
    delta: float = 1e-5
    """The probability with which that may not hold, [1e-12, 1); well below 1 / number of training images."""
    trains: Literal["head", "whole"] = "head"
    """head: one linear layer on features of the frozen network, which are computed once. whole: all of the network, by
    Opacus; no layer of it may be a batch norm."""
    epochs: float = 30.0
    """Passes over the training images on average, > 0; a step draws each image at random, with the probability
    batch_size / number of images (Poisson sampling)."""
    clip_norm: float = 1.0
    """To which the gradient of an image is clipped, [1e-6, 1e6]."""
    views: int = 2
    """Views of an image over which its gradient is averaged before it is clipped, 1 to 32 (arXiv:2204.13650). head: the
    image, its mirror image where the recipe flips, random crops; whole: random ones."""
    center: float = 0.05
    """head: fraction of the privacy that is spent on the mean of the features, which is subtracted, [0, 0.5]."""

    @property
    def is_private(self) -> bool:
        """Whether training is private."""
        return self.epsilon is not None

    def __post_init__(self) -> None:
        check_range("privacy.epsilon", self.epsilon, MIN_EPSILON, 100.0)
        check_range("privacy.delta", self.delta, MIN_DELTA, 1.0, open_high=True)
        check_choice("privacy.trains", self.trains, ("head", "whole"))
        check_range("privacy.epochs", self.epochs, 0.0, 100_000, open_low=True)
        check_range("privacy.clip_norm", self.clip_norm, MIN_NORM, MAX_NORM)
        check_range("privacy.views", self.views, 1, 32)
        check_range("privacy.center", self.center, 0.0, 0.5)


def check_private(recipe: Recipe) -> None:
    """Raises ConfigError for what a private run would not do, or what would break its promise."""
    for field, (needed, why) in UNUSED.items():
        value: object = recipe
        for name in field.split("."):
            value = getattr(value, name)
        if value != needed:
            shown = {"None": "null", "()": "[]"}.get(str(needed), str(needed).lower())
            fix = "Set privacy.epochs in place of it" if field == "epochs" else f"Set {field}={shown}"
            raise ConfigError(f"{field} can't go with privacy.epsilon ({why}): got {value!r:.80}. {fix}.")
    if recipe.privacy.trains == "head":
        _check_head(recipe)


def _check_head(recipe: Recipe) -> None:
    """Raises ConfigError for augmentations but flips: features are computed once."""
    for field in dataclasses.fields(recipe.augment):
        value = getattr(recipe.augment, field.name)
        if field.name != "flip" and value != field.default:
            raise ConfigError(
                f"augment.{field.name} is not used by privacy.trains=head: got {value!r:.80}. Leave it out, or give "
                "more privacy.views, which move the image."
            )


def check_private_run(recipe: Recipe, *, within: float | None, target: float | None, resume: bool) -> None:
    """Raises ConfigError for a private run with a budget, MissingExtra without Opacus: before images are decoded.

    The recipe is complete: the statistics of its images are those of its weights, where it starts from some.
    """
    if not recipe.privacy.is_private:
        return
    for name, value in (("within", within), ("target", target)):
        if value is not None:
            raise ConfigError(
                f"`{name}` can't go with privacy.epsilon: got {value:g}. The noise is found for a number of steps, "
                "which may depend on no clock and no image. Set privacy.epochs."
            )
    if recipe.data.mean is None or recipe.data.std is None:
        raise ConfigError(
            "private training needs data.mean and data.std: those of the training images would tell of them. Set, say, "
            "data.mean=[0.5,0.5,0.5] data.std=[0.25,0.25,0.25]."
        )
    if not resume and importlib.util.find_spec("opacus") is None:
        raise MissingExtra("Opacus", "private", "training with differential privacy")
