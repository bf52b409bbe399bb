"""The techniques of recipes: how to tell that one is used, and what to set to do without it (no torch here)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vivace.errors import ConfigError, nearest
from vivace.training.execution import AUTO, OPTIONS, Ablation, ExecutionOption
from vivace.training.recipes.recipe import Recipe

__all__ = ["TECHNIQUES", "Technique", "known_techniques", "techniques_of", "unused"]


@dataclass(frozen=True)
class Technique:
    """A technique, and what to set in a recipe to do without it."""

    name: str
    about: str
    is_on: Callable[[Recipe], bool]
    off: Mapping[str, Any]
    decided_by: str | None = None
    """The field of the recipe that the trial decides if it is "auto"; None: the recipe alone decides."""

    def may_be_on(self, recipe: Recipe) -> bool:
        """Whether a run of a recipe may use it, before the trial."""
        return self.is_on(recipe) or (self.decided_by is not None and getattr(recipe, self.decided_by) == AUTO)


def _argument(networks: tuple[str, ...], name: str, wanted: Any, default: Any) -> Callable[[Recipe], bool]:
    """Whether a recipe trains one of these networks with this argument."""
    return lambda r: r.model.name in networks and r.model.arguments.get(name, default) == wanted


def _uses_fewer_steps(recipe: Recipe) -> bool:
    options = recipe.optimizer.options
    return recipe.optimizer.name == "muon" and int(options.get("ns_steps", MUON_STEPS)) < USUAL_STEPS


# Newton–Schulz steps of our Muon, and those of its authors
MUON_STEPS, USUAL_STEPS = 3, 5


def _of_execution(option: ExecutionOption, ablation: Ablation) -> Technique:
    """The technique of an option of how a step is computed."""
    return Technique(
        ablation.name,
        ablation.about,
        lambda recipe: getattr(recipe, option.field) not in (option.plain, AUTO),
        {option.field: option.plain},
        option.field,
    )


TECHNIQUES = (
    *(_of_execution(option, option.ablation) for option in OPTIONS if option.ablation is not None),
    Technique(
        "growing images",
        "small images at the start of training",
        lambda r: r.augment.start_size is not None,
        {"augment.start_size": None},
    ),
    Technique(
        "hard images",
        "epochs in the middle of the run made of the images with the highest loss",
        lambda r: r.focus.share < 1,
        {"focus.share": 1.0},
    ),
    Technique(
        "late freezing",
        "the first layers learn no more from some time on",
        lambda r: bool(r.freeze_after),
        {"freeze_after": []},
    ),
    Technique(
        "whitening",
        "a frozen first layer made from the images for a learnt one",
        _argument(("fast_cnn",), "whitening", True, True),
        {"model.arguments.whitening": False},
    ),
    Technique(
        "identity start",
        "convolutions that pass their input on at first, for random filters",
        _argument(("fast_cnn",), "identity", True, True),
        {"model.arguments.identity": False},
    ),
    Technique(
        "ReLU",
        "for SiLU",
        _argument(("fast_cnn", "fast_photo"), "activation", "relu", "silu"),
        {"model.arguments.activation": "silu"},
    ),
    Technique(
        "Muon", "Muon for SGD at its usual rate", lambda r: r.optimizer.name == "muon", {"optimizer.name": "sgd"}
    ),
    Technique(
        "sharpness-aware steps",
        "the gradient where the loss near the weights is highest, for twice the cost of a step",
        lambda r: r.optimizer.sam > 0,
        {"optimizer.sam": 0.0, "optimizer.sam_adaptive": False},
    ),
    Technique("few Muon steps", "3 of Newton–Schulz for 5", _uses_fewer_steps, {"optimizer.options.ns_steps": 5}),
    Technique(
        "normalised filters",
        "each convolution's weights brought to a fixed norm",
        lambda r: bool(r.optimizer.options.get("normalize_filters")),
        {"optimizer.options.normalize_filters": False},
    ),
    Technique(
        "norm bias rate",
        "a higher one than that of the others",
        lambda r: r.optimizer.bias_lr_factor > 1,
        {"optimizer.bias_lr_factor": 1.0},
    ),
    Technique(
        "schedule",
        "a rate that rises and falls for a constant one",
        lambda r: r.schedule.name != "constant",
        {"schedule.name": "constant", "schedule.warmup": 0.0},
    ),
    Technique("flips", "mirrored images", lambda r: r.augment.flip != "none", {"augment.flip": "none"}),
    Technique(
        "alternating flips",
        "each image the other way round every epoch, for a coin",
        lambda r: r.augment.flip == "alternating",
        {"augment.flip": "random"},
    ),
    Technique("shifts", "shifted images", lambda r: r.augment.translate > 0, {"augment.translate": 0}),
    Technique(
        "crops",
        "random-resized crops for whole images",
        lambda r: r.augment.random_resized_crop is not None,
        {"augment.random_resized_crop": None},
    ),
    Technique(
        "random operations",
        "one of TrivialAugment's for each image",
        lambda r: r.augment.trivial_augment,
        {"augment.trivial_augment": False},
    ),
    Technique("colour jitter", "", lambda r: r.augment.color_jitter > 0, {"augment.color_jitter": 0.0}),
    Technique(
        "mixed chains",
        "each image mixed with chains of random operations, for accuracy under corruptions",
        lambda r: r.augment.mix != "none",
        {"augment.mix": "none"},
    ),
    Technique("cutout", "blanked squares", lambda r: r.augment.cutout > 0, {"augment.cutout": 0}),
    Technique("mixup", "weighted sums of two images", lambda r: r.augment.mixup > 0, {"augment.mixup": 0.0}),
    Technique("cutmix", "a part of another image", lambda r: r.augment.cutmix > 0, {"augment.cutmix": 0.0}),
    Technique(
        "label smoothing", "softened targets", lambda r: r.loss.label_smoothing > 0, {"loss.label_smoothing": 0.0}
    ),
    Technique(
        "loss for wrong labels",
        "symmetric or generalised cross-entropy for the plain one",
        lambda r: r.loss.name != "cross_entropy",
        {"loss.name": "cross_entropy"},
    ),
    Technique(
        "self-distillation",
        "targets that hold what the network last said of an image",
        lambda r: r.loss.self_distillation > 0,
        {"loss.self_distillation": 0.0},
    ),
    Technique("weight decay", "", lambda r: r.optimizer.weight_decay > 0, {"optimizer.weight_decay": 0.0}),
    Technique("moving average", "of the weights", lambda r: r.ema_decay is not None, {"ema_decay": None}),
)


def techniques_of(recipe: Recipe, names: Sequence[str] = ()) -> list[Technique]:
    """The techniques that are on in a resolved recipe; with names, these alone. Raises ConfigError for others."""
    known = known_techniques(names)
    for name in names:
        if not known[name].is_on(recipe):
            raise unused(name, recipe)
    return [technique for technique in TECHNIQUES if technique.is_on(recipe) and (not names or technique.name in names)]


def unused(name: str, recipe: Recipe) -> ConfigError:
    on = ", ".join(technique.name for technique in TECHNIQUES if technique.is_on(recipe))
    return ConfigError(f"the recipe does not use {name!r}: there is nothing to switch off. It uses: {on}.")


def known_techniques(names: Sequence[str]) -> dict[str, Technique]:
    """All techniques by name. Raises ConfigError if one of `names` is not among them."""
    known = {technique.name: technique for technique in TECHNIQUES}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"the technique is unknown: got {name!r}.{nearest(name, known)} Known: {', '.join(known)}."
            )
    return known
