"""What a change of network, optimizer or sampling brings with it, where nothing else is said (no torch here).

A rate of 0.2 is right for Muon on the convnet that it was measured with, and ruins AdamW on a transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vivace.training.recipe import Recipe

__all__ = ["with_implied"]

# Muon for a network that no recipe was measured with: the others by AdamW, which suits embeddings and norms alike
ANY_NETWORK: dict[str, Any] = {
    "name": "muon",
    "lr": 0.02,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 0.02,
    "aux_lr": 1e-3,
    "options": {"aux": "adamw"},
}
# usual starting points of the field, for batches of 64 to 500
USUAL: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "adam": {"lr": 1e-3, "nesterov": False, "weight_decay": 0.0},
    "adamw": {"lr": 1e-3, "nesterov": False, "weight_decay": 0.05},
    "lamb": {"lr": 5e-3, "nesterov": False, "weight_decay": 0.02},
    "muon": ANY_NETWORK,
}
# with weights a few rare images may be most of a batch's gradient: 300 images to 3 end anywhere without it
CLIP_OF_WEIGHTED = 2.0
OTHERS: dict[str, Any] = {"lr": 1e-3, "nesterov": False, "weight_decay": 0.0}


def with_implied(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` to a recipe, and before them those that follow from another network or optimizer.

    Another network starts without the arguments of the recipe's, and `fast` and `accurate`, whose rates were measured
    with their own network, take those that suit any. Another optimizer starts from its usual rate, decay and options.
    What needs to know an image by its loss or its answer is left out where images are mixed or drawn by class.
    Gradients of weighted classes are clipped.
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
