"""Networks by name: one table of our own, and every network of timm behind `timm/`."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from vivace.errors import ModelError, nearest
from vivace.models.convnets import FastCNN, FastPhoto, SimpleCNN
from vivace.models.timm_models import create_timm, list_timm, timm_stats
from vivace.models.weights import load_weights

__all__ = [
    "ZOO",
    "complete_arguments",
    "create_model",
    "head_parameters",
    "layer_groups",
    "list_models",
    "load_weights",
    "pretrained_stats",
]

ZOO: dict[str, Callable[..., nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "fast_cnn": FastCNN,
    "fast_photo": FastPhoto,
}
TIMM = "timm/"


def create_model(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    size: int = 32,
    pretrained: bool = False,
    **arguments: Any,
) -> nn.Module:
    """The network `name`: normalised images_BCHW float of `size` px → logits_BK.

    pretrained: with the weights that timm publishes. arguments: of the network's constructor.
    Raises ModelError for an unknown name, an argument that the network does not take, or weights that can't be had.
    """
    if name.startswith(TIMM):
        return create_timm(
            name[len(TIMM) :],
            num_classes,
            in_channels=in_channels,
            size=size,
            pretrained=pretrained,
            arguments=arguments,
        )
    if name not in ZOO:
        known = [*ZOO, *(TIMM + other for other in list_timm())]
        near = nearest(name, [*ZOO, *(other for other in list_timm())]) or nearest(name, known)
        raise ModelError(f"the network is unknown: got {name!r}.{near} Known: {', '.join(ZOO)} and timm/NAME.")
    if pretrained:
        raise ModelError(
            f"there are no published weights for {name}. Leave --pretrained out, or choose a timm/ network."
        )
    try:
        return ZOO[name](num_classes, in_channels=in_channels, size=size, **arguments)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{name} can't be built: {error}. Mend model.arguments or --size.") from None


def complete_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with our own networks' defaults filled in, so that a later change of a default harms no bundle."""
    if name not in ZOO:
        return dict(arguments)
    parameters = inspect.signature(ZOO[name]).parameters
    fixed = ("num_classes", "in_channels", "size")
    defaults = {key: parameter.default for key, parameter in parameters.items() if key not in fixed}
    return {**{key: list(v) if isinstance(v, tuple) else v for key, v in defaults.items()}, **arguments}


def list_models(pattern: str = "*") -> list[str]:
    """All names that `create_model` takes and that match a shell pattern."""
    names = [*ZOO, *(TIMM + name for name in list_timm())]
    return [name for name in names if fnmatch.fnmatch(name, pattern)]


def pretrained_stats(name: str) -> tuple[tuple[float, ...], tuple[float, ...], int, str] | None:
    """(mean, std, size, interpolation) that a timm network's weights were trained with; None for our own networks."""
    return timm_stats(name[len(TIMM) :]) if name.startswith(TIMM) else None


def head_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of the classifier."""
    get_classifier: Any = getattr(model, "get_classifier", None)
    if get_classifier is not None:
        heads = get_classifier()
        heads = list(heads) if isinstance(heads, tuple | list) else [heads]
    else:
        heads = [getattr(model, "head", None) or _last_with_parameters(model)]
    inside = {id(parameter) for head in heads if isinstance(head, nn.Module) for parameter in head.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in inside]


def _last_with_parameters(model: nn.Module) -> nn.Module:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[-1]


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Names of all parameters in groups from the input to the head, for rates that differ from layer to layer."""
    names = [name for name, _ in model.named_parameters()]
    group_matcher: Any = getattr(model, "group_matcher", None)
    if group_matcher is not None:
        from timm.models import group_parameters

        by_name = group_parameters(model, group_matcher(coarse=False), reverse=True)
        groups: dict[int, list[str]] = {}
        for name in names:
            groups.setdefault(by_name[name], []).append(name)
        return [groups[key] for key in sorted(groups)]
    # our own networks are sequences: their second-level parts are their layers
    ordered: dict[str, list[str]] = {}
    for name in names:
        ordered.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return list(ordered.values())


def count_parameters(model: nn.Module) -> int:
    """Number of all weights."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def forward_flops(model: nn.Module, *, in_channels: int, size: int) -> int:
    """Floating point operations of one image's forward pass (a multiply-add is two), as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False)
    training = model.training
    model.eval()
    with counter:
        model(torch.zeros(1, in_channels, size, size, device=device))
    model.train(training)
    return int(counter.get_total_flops())
