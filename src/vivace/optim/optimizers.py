"""Optimizers by name: our table, and every optimizer of timm."""

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

# arguments of optimizers that are fields of the config, and may not be given as options
FIELDS = ("lr", "momentum", "weight_decay")


def create_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    *,
    layers: list[list[str]] | None = None,
    head: list[str] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a config over the parameters of `model` that require a gradient.

    layers: parameter names of each layer, from the input to the head. head: parameter names of the head. Every group
    has "initial_lr", which is multiplied by the schedule for each step. Raises ConfigError for an unknown name, an
    unknown option, a value out of range, a network without trainable parameters, and an optimizer that can't be used
    here; ValueError if there is a `layer_decay` and no `layers`.
    """
    groups = parameter_groups(model, config, layers=layers, head=head or ())
    if not groups:
        raise ConfigError("the network has nothing to train: got 0 parameters that require a gradient. Unfreeze some.")
    build = OPTIMIZERS.get(config.name, _timm)
    check_optimizer_name(config.name)
    try:
        return build(groups, config)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ConfigError(
            f"the optimizer {config.name} can't be made: {reason}. It got momentum {config.momentum:g} and options "
            f"{dict(config.options)}. Fix optimizer.momentum or optimizer.options."
        ) from None


def check_optimizer_name(name: str) -> None:
    """Raise ConfigError for an optimizer that does not exist, or can't be used here."""
    if name not in OPTIMIZERS:
        _check_timm(name)


def list_optimizers() -> list[str]:
    """All names that `create_optimizer` accepts here, without optimizers of timm whose library or GPU is missing."""
    return [*OPTIMIZERS, *(n for n in _timm_names() if n not in OPTIMIZERS and _unusable(n) is None)]


def _options(
    config: OptimizerConfig, target: Callable[..., Any], *, fields: tuple[str, ...] = FIELDS
) -> dict[str, Any]:
    """The config's options, checked against the parameters of `target`; lists become tuples, as for betas."""
    parameters = inspect.signature(target).parameters
    known = [name for name in parameters if name not in ("self", "params", *fields)]
    for key, value in config.options.items():
        if key in fields:
            raise ConfigError(f"optimizer.options.{key} is a field of its own: got {value!r}. Set optimizer.{key}.")
        if key not in known:
            raise ConfigError(
                f"optimizer.options.{key} is not known to {config.name}.{nearest(key, known)} It takes: "
                f"{', '.join(known)}."
            )
        _check_option(key, value, parameters[key].default)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.options.items()}


def _check_option(name: str, value: Any, default: Any) -> None:
    """Raise ConfigError unless `value` has the type of `default`; some optimizers would only fail in a step."""
    if value is None or default is None:
        return
    expected = None
    if isinstance(default, bool):
        # the string "off" would be true
        expected = None if isinstance(value, bool) else "true or false"
    elif isinstance(default, int | float):
        expected = None if _is_number(value) else "a number"
    elif isinstance(default, tuple):
        fits = isinstance(value, list | tuple) and len(value) == len(default) and all(map(_is_number, value))
        expected = None if fits else f"a list of {len(default)} numbers"
    if expected:
        raise ConfigError(f"optimizer.options.{name} has the wrong type: got {value!r}. Give {expected}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sgd(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    options = _options(config, torch.optim.SGD, fields=(*FIELDS, "nesterov"))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, **options)


def _adam(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=config.lr, **_options(config, torch.optim.Adam))


def _adamw(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, **_options(config, torch.optim.AdamW))


def _lamb(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Layer-wise rates for large batches (arXiv:1904.00962); decay is decoupled unless the options say otherwise.

    timm's: a group without weight decay has no layer-wise rates unless `always_adapt`, and gradients are clipped to a
    norm of `max_grad_norm` = 1.
    """
    from timm.optim import Lamb

    return Lamb(groups, lr=config.lr, **{"decoupled_decay": True, **_options(config, Lamb)})


def _muon(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Muon for the matrices of the body; SGD or AdamW with `aux_lr` for head, norms and biases."""
    aux_lr = config.lr / 10 if config.aux_lr is None else config.aux_lr
    for group in groups:
        group["muon"] = group["role"] == "matrix"
        if not group["muon"]:
            # keep the factors of layers and biases
            group["lr"] = group["initial_lr"] = group["lr"] / config.lr * aux_lr
    options = _options(config, Muon, fields=(*FIELDS, "nesterov"))
    return Muon(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, **options)


def _timm(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2, get_optimizer_class

    options = _options(config, get_optimizer_class(config.name, bind_defaults=False))
    # timm passes momentum only to optimizers that have one
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        groups, opt=config.name, lr=config.lr, momentum=config.momentum, **options
    )
    return optimizer


def _check_timm(name: str) -> None:
    """Raise ConfigError unless timm has an optimizer of this name that works here."""
    if name not in _timm_names():
        known = [*OPTIMIZERS, *_timm_names()]
        raise ConfigError(
            f"the optimizer is unknown: got {name!r}.{nearest(name, known)} "
            f"Known: {', '.join(OPTIMIZERS)} and {len(_timm_names())} of timm's."
        )
    reason = _unusable(name)
    if reason is not None:
        raise ConfigError(f"the optimizer {name} can't be used: {reason}. Choose another `optimizer.name`.")


@functools.cache
def _timm_names() -> tuple[str, ...]:
    from timm.optim import list_optimizers as list_timm

    return tuple(str(name) for name in list_timm())


def _unusable(name: str) -> str | None:
    """Why an optimizer of timm can't be used here; None if it can."""
    from timm.optim import get_optimizer_class, get_optimizer_info

    info = get_optimizer_info(name)
    if info.second_order:
        return "it needs second derivatives, which training does not compute"
    try:
        get_optimizer_class(name, bind_defaults=False)
    except (ImportError, AssertionError):
        library = str(info.opt_class).partition(".")[0]
        return f"it needs a CUDA device and the library {library}"
    return None


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerConfig], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "muon": _muon,
    "lamb": _lamb,
}
