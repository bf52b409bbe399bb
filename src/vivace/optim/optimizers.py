"""Optimizers by name: one table of our own, and every optimizer that timm lists."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vivace.errors import ConfigError, nearest
from vivace.optim.config import OptimizerConfig
from vivace.optim.groups import parameter_groups
from vivace.optim.muon import Muon

__all__ = ["OPTIMIZERS", "create_optimizer", "list_optimizers"]

Groups = list[dict[str, Any]]


def create_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    *,
    layers: list[list[str]] | None = None,
    head: list[str] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a config over the parameters of `model` that require a gradient.

    layers, head: parameter names from input to head, and of the head. Every group has "initial_lr": the rate of a step
    is that times the schedule's multiplier. Raises ConfigError for an unknown name or an option it does not take.
    """
    groups = parameter_groups(model, config, layers=layers)
    if config.name in OPTIMIZERS:
        optimizer = OPTIMIZERS[config.name](groups, config, set(head or ()))
    elif config.name in _timm_optimizers():
        optimizer = _timm(groups, config, set())
    else:
        known = [*OPTIMIZERS, *_timm_optimizers()]
        raise ConfigError(
            f"the optimizer is unknown: got {config.name!r}.{nearest(config.name, known)} "
            f"Known: {', '.join(OPTIMIZERS)} and {len(_timm_optimizers())} of timm's."
        )
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return optimizer


def list_optimizers() -> list[str]:
    """All names that `create_optimizer` takes."""
    return [*OPTIMIZERS, *(name for name in _timm_optimizers() if name not in OPTIMIZERS)]


@functools.cache
def _timm_optimizers() -> tuple[str, ...]:
    from timm.optim import list_optimizers as list_timm

    return tuple(str(name) for name in list_timm())


def _options(config: OptimizerConfig, target: Callable[..., Any]) -> dict[str, Any]:
    """The config's options, checked against what `target` takes; lists become tuples, as for betas."""
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in config.options.items()}
    known = [name for name in inspect.signature(target).parameters if name not in ("self", "params")]
    for key in options:
        if key not in known:
            raise ConfigError(
                f"optimizer.options.{key} is not known to {config.name}.{nearest(key, known)} It takes: "
                f"{', '.join(known)}."
            )
    return options


def _sgd(groups: Groups, config: OptimizerConfig, head: set[str]) -> torch.optim.Optimizer:
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, **_options(config, torch.optim.SGD)
    )


def _adam(groups: Groups, config: OptimizerConfig, head: set[str]) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=config.lr, **_options(config, torch.optim.Adam))


def _adamw(groups: Groups, config: OptimizerConfig, head: set[str]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, **_options(config, torch.optim.AdamW))


def _lamb(groups: Groups, config: OptimizerConfig, head: set[str]) -> torch.optim.Optimizer:
    from timm.optim import Lamb

    return Lamb(groups, lr=config.lr, decoupled_decay=True, **_options(config, Lamb))


def _muon(groups: Groups, config: OptimizerConfig, head: set[str]) -> torch.optim.Optimizer:
    """Matrices of the body by Muon; the head, norms and biases by SGD at `aux_lr`."""
    aux_share = (config.lr / 10 if config.aux_lr is None else config.aux_lr) / config.lr
    split: Groups = []
    for group in groups:
        for is_matrix in (True, False):
            chosen = [
                (name, parameter)
                for name, parameter in zip(group["names"], group["params"], strict=True)
                if (parameter.ndim >= 2 and name not in head) == is_matrix
            ]
            if chosen:
                rate = group["lr"] * (1.0 if is_matrix else aux_share)
                split.append(
                    {
                        "params": [parameter for _, parameter in chosen],
                        "names": [name for name, _ in chosen],
                        "lr": rate,
                        "initial_lr": rate,
                        "weight_decay": group["weight_decay"],
                        "muon": is_matrix,
                    }
                )
    return Muon(split, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, **_options(config, Muon))


def _timm(groups: Groups, config: OptimizerConfig, head: set[str]) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2, get_optimizer_class

    target = get_optimizer_class(config.name, bind_defaults=False)
    options = _options(config, target)
    if "momentum" in inspect.signature(target).parameters:
        options.setdefault("momentum", config.momentum)
    momentum = options.pop("momentum", config.momentum)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups, opt=config.name, lr=config.lr, weight_decay=config.weight_decay, momentum=momentum, **options
        )
    except (ImportError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"the optimizer {config.name} can't be made: {error}. Choose another --optimizer.") from None
    return optimizer


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerConfig, set[str]], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "muon": _muon,
    "lamb": _lamb,
}
