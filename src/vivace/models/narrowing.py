"""Networks with fewer channels than their definition, as structured pruning leaves them, described by plain numbers.

A narrowed network is the network of its name with other layer sizes: its bundle needs only names and numbers, no code.
Sizes are (out, in, groups) of a convolution, (out, in) of a linear layer, (features,) of a norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from vivace.errors import ModelError, nearest
from vivace.torch_private import BatchNorm

__all__ = ["layer_sizes", "narrow", "narrowed_layers"]

NORMS = (BatchNorm, nn.LayerNorm)


def layer_sizes(module: nn.Module) -> tuple[int, ...] | None:
    """The sizes of a layer; None for a module without sizes that pruning changes."""
    if isinstance(module, nn.Conv2d):
        return module.out_channels, module.in_channels, module.groups
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, BatchNorm):
        return (module.num_features,)
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return (int(module.normalized_shape[0]),)
    return None


def narrowed_layers(model: nn.Module, original: nn.Module) -> dict[str, list[int]]:
    """Names and sizes of the layers in which `model` differs from the network it was made from: what `narrow` takes."""
    found = {}
    for name, module in original.named_modules():
        before, now = layer_sizes(module), layer_sizes(model.get_submodule(name))
        if now is not None and now != before:
            found[name] = list(now)
    return found


def narrow(model: nn.Module, layers: Mapping[str, Sequence[int]]) -> None:
    """Give layers of a network other sizes, in place; their weights are initialised again.

    layers: name → sizes. Raises ModelError for a layer that the network lacks or that has no such sizes.
    """
    modules = dict(model.named_modules())
    for name, sizes in layers.items():
        module = modules.get(name)
        before = None if module is None else layer_sizes(module)
        if module is None or before is None:
            sized = [key for key, value in modules.items() if layer_sizes(value) is not None]
            raise ModelError(f"narrowed names a layer that the network lacks: got {name!r}.{nearest(name, sized)}")
        if not _fits(sizes, before):
            raise ModelError(f"narrowed.{name} has invalid sizes: got {list(sizes)}, the layer has {list(before)}.")
        _resize(module, [int(size) for size in sizes])


def _fits(sizes: Sequence[int], before: Sequence[int]) -> bool:
    if isinstance(sizes, str) or len(sizes) != len(before):
        return False
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes)
    return whole and (len(sizes) < 3 or (sizes[0] % sizes[2] == 0 and sizes[1] % sizes[2] == 0))


def _resize(module: nn.Module, sizes: list[int]) -> None:
    with torch.no_grad():
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels, module.groups = sizes
            _replace(module, "weight", (sizes[0], sizes[1] // sizes[2], *module.kernel_size))
            _replace(module, "bias", (sizes[0],))
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = sizes
            _replace(module, "weight", (sizes[0], sizes[1]))
            _replace(module, "bias", (sizes[0],))
        elif isinstance(module, NORMS):
            if isinstance(module, nn.LayerNorm):
                module.normalized_shape = (sizes[0],)
            else:
                module.num_features = sizes[0]
            for name in ("weight", "bias", "running_mean", "running_var"):
                _replace(module, name, (sizes[0],))
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()


def _replace(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    old = getattr(module, name, None)
    if old is None:
        return
    new = old.new_empty(shape)
    # a parameter stays one, frozen if it was, and a buffer stays a buffer
    setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new)
