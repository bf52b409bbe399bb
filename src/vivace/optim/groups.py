"""Parameter groups: who is decayed, and at which multiple of the rate each parameter learns."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vivace.optim.config import OptimizerConfig

__all__ = ["parameter_groups"]

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(
    model: nn.Module, config: OptimizerConfig, *, layers: list[list[str]] | None = None
) -> list[dict[str, Any]]:
    """Groups with "params", "names", "lr", "initial_lr" and "weight_decay"; frozen parameters are left out.

    Norms and biases (all of one dimension or none) are not decayed unless the config says so. Biases of norms learn at
    `bias_lr_factor` times the rate. layers: parameter names from input to head; with `layer_decay` each layer learns at
    that multiple of the next one's rate.
    """
    norm_biases = {
        f"{name}.bias" if name else "bias" for name, module in model.named_modules() if isinstance(module, NORMS)
    }
    depth_scale: dict[str, float] = {}
    if config.layer_decay is not None and layers:
        for distance, names in enumerate(reversed(layers)):
            for name in names:
                depth_scale[name] = config.layer_decay**distance
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = depth_scale.get(name, 1.0)
        if name in norm_biases:
            factor *= config.bias_lr_factor
        decayed = parameter.ndim >= 2 or config.decay_norm_and_bias
        decay = config.weight_decay if decayed else 0.0
        # a decay of lr · wd would grow with the rate of these biases: keep it what it is for the others
        if name in norm_biases and config.bias_lr_factor != 1.0:
            decay /= config.bias_lr_factor
        rate = config.lr * factor
        group = groups.setdefault(
            (rate, decay), {"params": [], "names": [], "lr": rate, "initial_lr": rate, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
