"""Parameter groups: weight decay and learning rate of each parameter."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from vivace.optim.config import OptimizerConfig
from vivace.torch_private import ConvNd, NormBase

__all__ = ["parameter_groups"]

NORMS = (NormBase, nn.LayerNorm, nn.GroupNorm)
# in this order: the learning rate of the first group is the one that is shown
ROLES = ("matrix", "head", "other")


def parameter_groups(
    model: nn.Module,
    config: OptimizerConfig,
    *,
    layers: list[list[str]] | None = None,
    head: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Groups with "params", "names", "role", "lr", "initial_lr" and "weight_decay"; frozen parameters are left out.

    role: "matrix" (weights of linear layers and convolutions in the body), "head", or "other" (norms, biases, tokens,
    embeddings); groups come in this order. Parameters with fewer than two dimensions, and those that the network's
    `no_weight_decay` names, have no weight decay unless the config says so. Norm biases have `bias_lr_factor` times the
    learning rate and the same decay per step as other parameters. layers: parameter names from the input to the head;
    with `layer_decay` the learning rate of each layer is that multiple of the next layer's.
    Raises ValueError if there is a `layer_decay` and no `layers`.
    """
    exempt = set(getattr(model, "no_weight_decay", set)())
    norm_biases = {_join(name, "bias") for name, module in model.named_modules() if isinstance(module, NORMS)}
    matrices = {
        _join(name, "weight") for name, module in model.named_modules() if isinstance(module, nn.Linear | ConvNd)
    }
    depth_scale = _depth_scales(config.layer_decay, layers)
    groups: dict[tuple[int, float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role = "head" if name in head else "matrix" if name in matrices and name not in exempt else "other"
        factor = depth_scale.get(name, 1.0)
        decayed = config.decay_norm_and_bias or (parameter.ndim >= 2 and name not in exempt)
        decay = config.weight_decay if decayed else 0.0
        if name in norm_biases:
            factor *= config.bias_lr_factor
            decay /= config.bias_lr_factor
        rate = config.lr * factor
        group = groups.setdefault(
            (ROLES.index(role), rate, decay),
            {"params": [], "names": [], "role": role, "lr": rate, "initial_lr": rate, "weight_decay": decay},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    # sorted() is stable: layers keep their order within a role
    return sorted(groups.values(), key=lambda group: ROLES.index(group["role"]))


def _depth_scales(layer_decay: float | None, layers: list[list[str]] | None) -> dict[str, float]:
    if layer_decay is None:
        return {}
    if layers is None:
        raise ValueError("optimizer.layer_decay needs the network's layers: pass layers=layer_groups(model)")
    return {name: layer_decay**distance for distance, names in enumerate(reversed(layers)) for name in names}


def _join(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter
