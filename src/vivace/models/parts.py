"""The parts of a network: its head, its layers from input to output, its number of weights and operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "adjust_head",
    "count_parameters",
    "forward_flops",
    "head_parameters",
    "head_shifts",
    "last_layer",
    "layer_groups",
    "scale_head",
]


def head_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of the classifier, whose shapes depend on the number of classes.

    Our networks define it by `parts`, timm's by `get_classifier`; of any other network it is the last layer.
    """
    inside = {id(parameter) for head in _heads(model) for module in head for parameter in module.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in inside]


def _heads(model: nn.Module) -> list[list[nn.Module]]:
    """The classifiers of a network, usually one, each as a list of modules that run in sequence."""
    parts = _method(model, "parts")
    if parts is not None:
        return [list(parts()[-1])]
    get_classifier = _method(model, "get_classifier")
    if get_classifier is not None:
        heads = get_classifier()
        return [[head] for head in heads] if isinstance(heads, tuple | list) else [[heads]]
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return [layers[-1:]]


def _method(model: nn.Module, name: str) -> Any:
    """A method that our networks or timm's have; None for other networks, whose attribute of that name is their own."""
    is_known = type(model).__module__.partition(".")[0] in ("vivace", "timm")
    return getattr(model, name, None) if is_known else None


@torch.no_grad()
def scale_head(model: nn.Module, factor: float) -> None:
    """Multiply the logits by `factor` > 0, in place, by the weights of the last layer of the head that has any.

    The caller checks that the logits are linear in that layer: a network may do something else after it.
    """
    for head in _heads(model):
        layers = [layer for module in head for layer in module.modules() if list(layer.parameters(recurse=False))]
        for parameter in layers[-1].parameters(recurse=False) if layers else ():
            parameter.mul_(factor)


def head_shifts(model: nn.Module, num_classes: int) -> bool:
    """Whether `adjust_head` can shift the logits: the last layer of the head is linear and has a bias."""
    layer = last_layer(model, num_classes)
    return layer is not None and layer.bias is not None


@torch.no_grad()
def adjust_head(model: nn.Module, scale_K: Tensor, shift_K: Tensor) -> bool:
    """Make each logit scale · logit + shift, in place, in the last layer of the head; False if that can't be done.

    The caller checks the result, as for `scale_head`.
    """
    layer = last_layer(model, len(scale_K))
    if layer is None or (layer.bias is None and bool(shift_K.any())):
        return False
    layer.weight.mul_(scale_K.view(-1, *[1] * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.mul_(scale_K).add_(shift_K)
    return True


def last_layer(model: nn.Module, num_classes: int) -> nn.Linear | nn.Conv2d | None:
    """The one layer that gives the logits; None if there are several heads, or another kind of layer."""
    heads = _heads(model)
    layers = [layer for module in heads[0] for layer in module.modules() if list(layer.parameters(recurse=False))]
    if len(heads) != 1 or not layers or not isinstance(layers[-1], nn.Linear | nn.Conv2d):
        return None
    return layers[-1] if len(layers[-1].weight) == num_classes else None


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Names of all parameters in groups from the input to the head, for rates that differ from layer to layer.

    Our networks define it by `parts`, timm's by `group_matcher`; of any other network each child is a layer.
    """
    names = [name for name, _ in model.named_parameters()]
    group_matcher = _method(model, "group_matcher")
    if group_matcher is not None:
        from timm.models import group_parameters

        layer_of = group_parameters(model, group_matcher(coarse=False), reverse=True)
    else:
        parts = _method(model, "parts")
        layers = parts() if parts is not None else [[child] for child in model.children()]
        by_id = {
            id(parameter): index for index, part in enumerate(layers) for m in part for parameter in m.parameters()
        }
        # parameters outside every part, such as a class token, belong to the input's group
        layer_of = {name: by_id.get(id(parameter), 0) for name, parameter in model.named_parameters()}
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(layer_of[name], []).append(name)
    return [groups[key] for key in sorted(groups)]


def count_parameters(model: nn.Module) -> int:
    """Number of all weights, frozen ones included."""
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
