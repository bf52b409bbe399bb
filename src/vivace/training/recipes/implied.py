"""Changes to a recipe that follow from another network, optimizer or sampling, unless they are set (no torch here).

For example, a learning rate of 0.2 suits Muon on the convnet of `fast`; AdamW diverges with it on a transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vivace.errors import ConfigError
from vivace.models.own.names import is_own
from vivace.training.recipes.private import private_changes
from vivace.training.recipes.recipe import Recipe

__all__ = ["unused_options", "with_implied", "with_starting_weights"]

# Muon for any network: what it does not treat is trained by AdamW, which suits embeddings and norms
ANY_NETWORK: dict[str, Any] = {
    "name": "muon",
    "lr": 0.02,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 0.02,
    "aux_lr": 1e-3,
    "options": {"aux": "adamw"},
}
# usual values for batches of 64 to 500
USUAL: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "adam": {"lr": 1e-3, "nesterov": False, "weight_decay": 0.0},
    "adamw": {"lr": 1e-3, "nesterov": False, "weight_decay": 0.05},
    "lamb": {"lr": 5e-3, "nesterov": False, "weight_decay": 0.02},
    "muon": ANY_NETWORK,
}
# what a recipe does to parts of its own network, or to their inputs
OF_OWN: dict[str, Any] = {
    "finetune.head": False,
    "model.pretrained": False,
    "freeze_after": (),
    "augment.start_size": None,
    "optimizer.layer_decay": None,
    "head_epochs": 0,
}
# epochs of a network that is named under `finetune` without weights
EPOCHS_FROM_SCRATCH = 8
# of `fast` and `accurate`, from trained weights: docs/log/2026-11-29.md
LR_FACTOR_TRAINED, EPOCHS_FACTOR_TRAINED = 0.5, 0.5
# with class weights a few rare images may dominate the gradient of a batch
CLIP_OF_WEIGHTED = 2.0
LEFT_OUT_WITH_FOCAL = ("loss.label_smoothing", "loss.self_distillation")
# fields that matter to the epochs of a run
OF_EPOCHS = (
    *("optimizer.", "schedule.", "augment.", "batch_size", "ema_decay", "clip_grad_norm", "early_stopping"),
    *("monitor", "loss.focal_gamma", "loss.name", "loss.alpha", "loss.beta", "loss.q"),
)
OTHERS: dict[str, Any] = {"lr": 1e-3, "nesterov": False, "weight_decay": 0.0}


def with_implied(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` to a recipe, preceded by those that follow from them.

    With another network, the recipe's network arguments are dropped, and `fast` and `accurate`, whose learning rates
    suit their own network, take an optimizer that suits any. With one of the user's own no head is solved, nothing is
    frozen, and images keep their size: its parts are not known. With another optimizer, learning rate, weight decay and
    options take its usual values. Hard-example sampling and self-distillation, which need a loss or a prediction of
    each image, are off if images are mixed; the former also with balanced sampling. With class weights, gradients are
    clipped. From a trained run, `fast` and `accurate` take a part of their epochs and of their rate. With focal loss,
    label smoothing (whose part of the loss it does not lower), self-distillation and hard-example sampling are off, and
    so they are with a loss for wrong labels. Under attack, the best weights are those of the best probe; hard-example
    sampling and self-distillation are off.
    """
    implied: dict[str, Any] = {}
    if recipe.name == "private":
        implied |= private_changes(changes)
    # a loss for wrong labels: smoothing bounds the loss no more, and the hardest images are those with wrong labels
    if changes.get("loss.focal_gamma") or changes.get("loss.name", "cross_entropy") not in ("cross_entropy", None):
        implied |= dict.fromkeys(LEFT_OUT_WITH_FOCAL, 0.0) | {"focus.share": 1.0}
    if str(changes.get("attack.eps", 0)).strip("0.") != "":
        implied |= {"monitor": "robust", "focus.share": 1.0, "loss.self_distillation": 0.0}
    mixed = changes.get("augment.mixup") or changes.get("augment.cutmix")
    if mixed or changes.get("data.balanced_sampling"):
        implied["focus.share"] = 1.0
    if mixed:
        implied["loss.self_distillation"] = 0.0
    if changes.get("loss.class_weights", "none") not in ("none", None) and recipe.clip_grad_norm is None:
        implied["clip_grad_norm"] = CLIP_OF_WEIGHTED
    network, optimizer = changes.get("model.name"), changes.get("optimizer.name")
    own = is_own(str(network))
    learnt = not own and any(
        changes.get(f"model.{name}", getattr(recipe.model, name)) for name in ("pretrained", "weights", "start_from")
    )
    if recipe.finetune.head and not learnt:
        # there are no features that a head could be solved on
        implied |= {"finetune.head": False, "epochs": max(recipe.epochs, EPOCHS_FROM_SCRATCH)}
    if network not in (None, recipe.model.name):
        implied["model.arguments"] = {}
        if own:
            implied |= OF_OWN
        if recipe.name in ("fast", "accurate") and optimizer is None:
            implied |= _fields(ANY_NETWORK)
    if optimizer not in (None, recipe.optimizer.name):
        implied |= {"optimizer.aux_lr": None, "optimizer.options": {}, "optimizer.bias_lr_factor": 1.0}
        implied |= _fields(USUAL.get(str(optimizer), OTHERS))
    if changes.get("model.start_from") and recipe.name in ("fast", "accurate"):
        for name in ("lr", "aux_lr"):
            rate = implied.get(f"optimizer.{name}", getattr(recipe.optimizer, name))
            implied[f"optimizer.{name}"] = None if rate is None else LR_FACTOR_TRAINED * rate
        implied["epochs"] = max(1, round(EPOCHS_FACTOR_TRAINED * recipe.epochs))
    return implied | dict(changes)


def with_starting_weights(recipe: Any, changes: Mapping[str, Any], *, from_scratch: bool) -> tuple[Any, dict[str, Any]]:
    """(recipe, changes) with "auto" replaced where the options say what a run starts from.

    recipe: as `train` takes it. Raises ConfigError for from_scratch with weights.
    """
    changes = dict(changes)
    pretrained, file = bool(changes.get("model.pretrained")), bool(changes.get("model.weights"))
    if from_scratch:
        if pretrained or file or recipe == "finetune":
            given = "the recipe 'finetune'" if recipe == "finetune" else "`pretrained` or `weights`"
            raise ConfigError(f"`from_scratch` can't go with {given}: got both. Leave one of them out.")
        changes["model.pretrained"] = False
    if recipe != "auto":
        return recipe, changes
    if pretrained or (file and str(changes.get("model.name", "")).startswith("timm/")):
        return "finetune", changes
    if file or from_scratch or "model.name" in changes or _is_told_otherwise(changes):
        # a file without a network's name is of the network of `fast`; one that is named without weights is trained
        # from scratch
        return "fast", changes
    return recipe, changes


def _is_told_otherwise(changes: Mapping[str, Any]) -> bool:
    """Whether the images are said to be other than RGB of 8 bits, which pretrained weights are of."""
    return str(changes.get("data.channels", 3)) != "3" or changes.get("data.pixels", "uint8") != "uint8"


def unused_options(recipe: Recipe, changes: Mapping[str, Any], *, timed: bool) -> list[str]:
    """Of the changes, the fields that matter to epochs alone, where the recipe has none and no time budget for any."""
    # a private head is trained by the same optimizer, in privacy.epochs
    if recipe.epochs > 0 or timed or recipe.privacy.is_private:
        return []
    return [name for name in changes if name.startswith(OF_EPOCHS)]


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"optimizer.{key}": value for key, value in values.items()}
