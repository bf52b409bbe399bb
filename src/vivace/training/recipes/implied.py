"""Changes to a recipe that follow from another network, optimizer or sampling, unless they are set (no torch here).

For example, a learning rate of 0.2 suits Muon on the convnet of `fast`; AdamW diverges with it on a transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vivace.training.recipes.recipe import Recipe

__all__ = ["with_implied"]

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
# with class weights a few rare images may dominate the gradient of a batch
CLIP_OF_WEIGHTED = 2.0
OTHERS: dict[str, Any] = {"lr": 1e-3, "nesterov": False, "weight_decay": 0.0}


def with_implied(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` to a recipe, preceded by those that follow from them.

    With another network, the recipe's network arguments are dropped, and `fast` and `accurate`, whose learning rates
    suit their own network, take an optimizer that suits any. With another optimizer, learning rate, weight decay and
    options take its usual values. Hard-example sampling and self-distillation, which need a loss or a prediction of
    each image, are off if images are mixed; the former also with balanced sampling. With class weights, gradients are
    clipped.
    """
    implied: dict[str, Any] = {}
    mixed = changes.get("augment.mixup") or changes.get("augment.cutmix")
    if mixed or changes.get("data.balanced_sampling"):
        implied["focus.share"] = 1.0
    if mixed:
        implied["loss.self_distillation"] = 0.0
    if changes.get("loss.class_weights") == "balanced" and recipe.clip_grad_norm is None:
        implied["clip_grad_norm"] = CLIP_OF_WEIGHTED
    network, optimizer = changes.get("model.name"), changes.get("optimizer.name")
    if network not in (None, recipe.model.name):
        implied["model.arguments"] = {}
        if recipe.name in ("fast", "accurate") and optimizer is None:
            implied |= _fields(ANY_NETWORK)
    if optimizer not in (None, recipe.optimizer.name):
        implied |= {"optimizer.aux_lr": None, "optimizer.options": {}, "optimizer.bias_lr_factor": 1.0}
        implied |= _fields(USUAL.get(str(optimizer), OTHERS))
    return implied | dict(changes)


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"optimizer.{key}": value for key, value in values.items()}
