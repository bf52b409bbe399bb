"""A network cut in two: a front that is not trained, and a back that is trained on what the front gives.

Networks are cut where their modules are called one after the other, each on what the one before gave: the convnets of
torchvision and timm, and most others. A network that adds something in between, as a transformer adds positions, fails
the check that both parts together answer as the whole does, and is not cut there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Cut", "back_of", "find_cut", "front_of"]

# of the operations of a forward pass, the largest and the smallest fraction that the back may have. Below the smallest
# it is hardly more than the head; above the largest, training it is not much cheaper than training everything
LARGEST_BACK, SMALLEST_BACK = 0.35, 0.1
# the parts repeat the operations of the whole, so that their answers differ by rounding alone
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a network is cut."""

    units: tuple[str, ...]
    """Names of the modules that are called in sequence, from input to output."""
    index: int
    """Of the first unit of the back."""
    shape: tuple[int, ...]
    """[C, H, W] or whatever the front gives for an image."""
    fraction: float
    """Of the operations of a forward pass, those of the back."""

    @property
    def name(self) -> str:
        """The last module of the front."""
        return self.units[self.index - 1]

    @property
    def num_values(self) -> int:
        """Values that the front gives for an image."""
        return torch.Size(self.shape).numel()


@torch.no_grad()
def find_cut(
    model: nn.Module, images_BCHW: Tensor, *, after: str | None = None, max_values: int | None = None
) -> Cut | None:
    """The cut with the largest back of at most LARGEST_BACK of the operations; None where the network can't be cut.

    images_BCHW: normalised, two or more, on the model's device; the parts are compared with the whole on them.
    after: the name of the last module of the front; None: chosen. max_values: that the front may give for an image;
    None: any number. The model is left as it is.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        calls = _recorded(model, images_BCHW)
        units = tuple(_units(model, "", calls))
        total = sum(calls[unit].flops for unit in units)
        rest = total
        for index, unit in enumerate(units[:-1], 1):
            rest -= calls[unit].flops
            fraction, shape = rest / max(total, 1), calls[unit].shape
            fits = after == unit if after is not None else SMALLEST_BACK <= fraction <= LARGEST_BACK
            if not fits or shape is None or len(shape) != 3:
                continue
            if max_values is not None and torch.Size(shape).numel() > max_values:
                continue
            cut = Cut(units=units, index=index, shape=shape, fraction=fraction)
            if _is_sound(model, cut, images_BCHW):
                return cut
        return None
    finally:
        for module, training in modes.items():
            module.training = training


def front_of(model: nn.Module, cut: Cut) -> nn.Module:
    """The network up to the cut; its modules are those of `model`."""
    return _Front(_without(model, frozenset(cut.units[cut.index :])), cut.shape)


def back_of(model: nn.Module, cut: Cut) -> nn.Module:
    """The network after the cut, what the front gives → logits; its modules are those of `model`."""
    return _without(model, frozenset(cut.units[: cut.index]))


class _Front(nn.Module):
    """Up to a cut. Where the network flattens maps before its head, they get their shape back."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.shape = network, shape

    def forward(self, images_BCHW: Tensor) -> Tensor:
        given: Tensor = self.network(images_BCHW)
        return given.reshape(-1, *self.shape)


def _without(module: nn.Module, names: frozenset[str], prefix: str = "") -> nn.Module:
    """`module` with nothing in place of some of its modules: new containers, the same modules and weights in them."""
    if not any(name.startswith(prefix) for name in names):
        return module
    # copy.copy would share the dictionary of the children
    same = copy.copy(module)
    children = {
        name: nn.Identity() if f"{prefix}{name}" in names else child and _without(child, names, f"{prefix}{name}.")
        for name, child in module._modules.items()
    }
    object.__setattr__(same, "_modules", children)
    return same


@dataclass
class _Call:
    """What a module did in a forward pass."""

    count: int = 0
    order: int = 0
    flops: int = 0
    shape: tuple[int, ...] | None = None


def _recorded(model: nn.Module, images_BCHW: Tensor) -> dict[str, _Call]:
    """By name, what each module did."""
    calls = {name: _Call() for name, _ in model.named_modules()}
    order = iter(range(1 << 30))

    def record(name: str, module: nn.Module, output: object) -> None:
        call = calls[name]
        call.count += 1
        call.order = next(order)
        tensor = output if isinstance(output, Tensor) else None
        call.shape = None if tensor is None else tuple(tensor.shape[1:])
        if isinstance(module, nn.Conv2d | nn.Linear) and tensor is not None:
            places = tensor[0].numel() // max(1, tensor.shape[1 if isinstance(module, nn.Conv2d) else -1])
            _add(calls, name, places * module.weight.numel())

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: record(name, module, output))
        for name, module in model.named_modules()
    ]
    try:
        model(images_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _add(calls: dict[str, _Call], name: str, flops: int) -> None:
    """Add operations to a module and to all that it is inside of."""
    while name:
        calls[name].flops += flops
        name = name.rpartition(".")[0]


def _units(module: nn.Module, prefix: str, calls: dict[str, _Call]) -> Iterator[str]:
    """Names of the modules that are called in sequence; sequences are given by their members."""
    children = [(f"{prefix}{name}", child) for name, child in module.named_children()]
    called = sorted((calls[name].order, name, child) for name, child in children if calls[name].count == 1)
    for _, name, child in called:
        if type(child) is nn.Sequential:
            yield from _units(child, f"{name}.", calls)
        else:
            yield name


def _is_sound(model: nn.Module, cut: Cut, images_BCHW: Tensor) -> bool:
    """Whether both parts together answer as the whole does."""
    try:
        expected = model(images_BCHW)
        found = back_of(model, cut)(front_of(model, cut)(images_BCHW))
    except Exception:
        # a shape that does not fit, in whatever words
        return False
    scale = expected.abs().max().clamp_min(1e-6)
    return found.shape == expected.shape and bool((found - expected).abs().max() <= TOLERANCE * scale)
