"""Structured pruning: whole channels are removed, which makes a network faster on every runtime.

Channels that depend on each other, for example through residual sums, are removed together; torch-pruning's dependency
graph finds them (arXiv:2301.12900). The importance of a channel is the first-order estimate of the change in loss
without it (arXiv:1906.10771), its cost the measured milliseconds of its layers. Blocks of channels with the least
importance per millisecond are removed first.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vivace.errors import MissingExtra, ModelError
from vivace.hardware import supported_precisions
from vivace.models.normalize import Normalize
from vivace.models.parts import head_parameters
from vivace.runtimes.quiet import quiet
from vivace.torch_private import ConvNd

__all__ = ["Pruned", "layer_milliseconds", "prune"]

# channels are removed in blocks of a vector register: a number between two multiples takes as long as the larger one
BLOCK = 16
# fraction of a layer's channels that always stays: training can't recover a layer that is almost closed
MIN_SHARE = 0.15
TIMED_CALLS, TIMED_IMAGES = 12, 8
BATCH = 32


@dataclass(frozen=True)
class Pruned:
    """A pruned network."""

    model: nn.Module
    share: float
    """Predicted time of its convolutions and linear layers, as a fraction of the whole network's."""


@dataclass
class _Group:
    """Channels that depend on each other and are removed together, a block at a time."""

    root: nn.Module
    """A layer whose outputs they are."""
    order: list[int]
    """The channels, the least important first."""
    importance: np.ndarray
    """Importance of each channel."""
    outputs: list[nn.Module]
    """Layers with these channels as outputs."""
    inputs: list[tuple[nn.Module, int]]
    """Layers with these channels as inputs, and the number of inputs per channel."""
    removed: int = 0

    @property
    def size(self) -> int:
        return len(self.order)

    @property
    def can_shrink(self) -> bool:
        return self.size - self.removed - self.block >= max(self.block, MIN_SHARE * self.size)

    @property
    def block(self) -> int:
        return BLOCK if self.size >= 4 * BLOCK else max(1, self.size // 8)

    def next_importance(self) -> float:
        return float(self.importance[self.order[self.removed : self.removed + self.block]].sum())


def layer_milliseconds(model: nn.Module, images_BCHW: Tensor) -> dict[str, float]:
    """Median ms per image of each convolution and linear layer in a forward pass, by name.

    images_BCHW: normalised float32, on the CPU. Weights and images are converted to bf16 if the processor supports it.
    """
    dtype = torch.bfloat16 if "bf16" in supported_precisions(torch.device("cpu")) else torch.float32
    model = copy.deepcopy(model).to(dtype).eval()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    starts: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in layers}

    def begin(name: str) -> Any:
        return lambda *_: starts.__setitem__(name, time.perf_counter())

    def end(name: str) -> Any:
        return lambda *_: times[name].append(1e3 * (time.perf_counter() - starts[name]))

    for name, module in layers.items():
        module.register_forward_pre_hook(begin(name))
        module.register_forward_hook(end(name))
    with torch.inference_mode():
        for _ in range(TIMED_CALLS):
            model(images_BCHW.to(dtype).contiguous(memory_format=torch.channels_last))
    # the first calls reorder weights; layers that the forward pass does not use have no time
    return {
        name: float(np.median(values[TIMED_CALLS // 4 :])) / len(images_BCHW)
        for name, values in times.items()
        if values
    }


def prune(
    model: nn.Module,
    normalize: Normalize,
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    shares: list[float],
) -> dict[float, Pruned]:
    """The network pruned to each of `shares` of the time of its layers, in (0, 1). A share out of reach is left out.

    images_NHWC: uint8, and labels_N: training images, for the importance of channels.
    Raises ModelError if nothing of the network can be pruned, MissingExtra without torch-pruning.
    """
    model = copy.deepcopy(model).eval().requires_grad_(True).to(memory_format=torch.channels_last)
    example_BCHW = normalize(torch.from_numpy(images_NHWC[:1].copy()).permute(0, 3, 1, 2))
    # several images: with a single one, reordering large weights would count, which a runtime does only once
    milliseconds = layer_milliseconds(model, example_BCHW.repeat(TIMED_IMAGES, 1, 1, 1))
    _accumulate_gradients(model, normalize, images_NHWC, labels_N)
    groups = _groups(model, example_BCHW)
    if not groups:
        raise ModelError(f"nothing of a {type(model).__name__} can be pruned: no channels are free to go.")
    modules = {module: name for name, module in model.named_modules()}
    cost = _Cost({module: milliseconds.get(name, 0.0) for module, name in modules.items()})
    whole, found = cost.total(groups), {}
    for share in sorted(shares, reverse=True):
        while cost.total(groups) > share * whole:
            free = [group for group in groups if group.can_shrink]
            if not free:
                break
            best = min(free, key=lambda group: group.next_importance() / max(cost.saved(group, groups), 1e-9))
            best.removed += best.block
        else:
            found[share] = Pruned(_without(model, example_BCHW, groups), cost.total(groups) / whole)
    return found


class _Cost:
    """Predicted ms of layers: the measured ones, times the fractions of inputs and outputs that are left."""

    def __init__(self, milliseconds: dict[nn.Module, float]) -> None:
        self._milliseconds = {m: ms for m, ms in milliseconds.items() if isinstance(m, nn.Conv2d | nn.Linear)}

    def total(self, groups: list[_Group]) -> float:
        left = self._left(groups)
        return sum(ms * left.get((m, "out"), 1.0) * left.get((m, "in"), 1.0) for m, ms in self._milliseconds.items())

    def saved(self, group: _Group, groups: list[_Group]) -> float:
        before = self.total(groups)
        group.removed += group.block
        after = self.total(groups)
        group.removed -= group.block
        return before - after

    def _left(self, groups: list[_Group]) -> dict[tuple[nn.Module, str], float]:
        left: dict[tuple[nn.Module, str], float] = {}
        for group in groups:
            for layer in group.outputs:
                left[layer, "out"] = left.get((layer, "out"), 1.0) - group.removed / _width(layer, "out")
            for layer, each in group.inputs:
                # the inputs of a grouped convolution are counted with its outputs: it loses whole groups
                if not (isinstance(layer, nn.Conv2d) and layer.groups > 1):
                    left[layer, "in"] = left.get((layer, "in"), 1.0) - group.removed * each / _width(layer, "in")
        return left


def _width(layer: nn.Module, side: str) -> int:
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels if side == "out" else layer.in_channels
    assert isinstance(layer, nn.Linear)
    return layer.out_features if side == "out" else layer.in_features


def _accumulate_gradients(
    model: nn.Module, normalize: Normalize, images_NHWC: np.ndarray, labels_N: np.ndarray
) -> None:
    for start in range(0, len(images_NHWC), BATCH):
        images_BCHW = torch.from_numpy(images_NHWC[start : start + BATCH].copy()).permute(0, 3, 1, 2)
        labels_B = torch.from_numpy(labels_N[start : start + BATCH])
        loss = functional.cross_entropy(model(normalize(images_BCHW)).float(), labels_B, reduction="sum")
        (loss / len(images_NHWC)).backward()


def _groups(model: nn.Module, example_BCHW: Tensor) -> list[_Group]:
    try:
        with quiet():
            import torch_pruning
    except ImportError:
        raise MissingExtra("torch-pruning", "accelerate", "a smaller network by pruning") from None
    with quiet():
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_BCHW)
    head = set(head_parameters(model))
    ignored = [m for name, m in model.named_modules() if f"{name}.weight" in head]
    importance = torch_pruning.importance.GroupTaylorImportance(
        group_reduction="sum", normalizer=None, target_types=[ConvNd, nn.Linear]
    )
    groups = []
    for members in graph.get_all_groups(ignored_layers=ignored, root_module_types=[nn.Conv2d, nn.Linear]):
        worth = importance(members)
        if worth is None or not _prunable(members, model):
            continue
        values = worth.detach().double().numpy()
        groups.append(
            _Group(
                root=members[0].dep.target.module,
                order=[int(index) for index in np.argsort(values, kind="stable")],
                importance=values,
                outputs=_layers(members, outputs=True),
                inputs=[(m, max(1, _inputs_of(members, m) // len(values))) for m in _layers(members, outputs=False)],
            )
        )
    return [group for group in groups if group.can_shrink]


def _prunable(members: Any, model: nn.Module) -> bool:
    """Whether channels may be removed: not those that attention divides into heads, nor those of a residual stream."""
    modules = [member.dep.target.module for member in members]
    if any(isinstance(module, nn.LayerNorm | nn.MultiheadAttention) for module in modules):
        return False
    names = {id(module): name for name, module in model.named_modules()}
    if any(isinstance(module, nn.Parameter) for module in modules):
        return False
    return not any("attn" in names.get(id(module), "") for module in modules)


def _layers(members: Any, *, outputs: bool) -> list[nn.Module]:
    found: list[nn.Module] = []
    for member in members:
        module, name = member.dep.target.module, member.dep.handler.__name__
        if isinstance(module, nn.Conv2d | nn.Linear) and ("out" in name) == outputs and module not in found:
            found.append(module)
    return found


def _inputs_of(members: Any, module: nn.Module) -> int:
    return max(len(m.idxs) for m in members if m.dep.target.module is module and "out" not in m.dep.handler.__name__)


def _without(model: nn.Module, example_BCHW: Tensor, groups: list[_Group]) -> nn.Module:
    """A copy of the network without the removed channels."""
    import torch_pruning

    names = {module: name for name, module in model.named_modules()}
    pruned = copy.deepcopy(model)
    with quiet():
        graph = torch_pruning.DependencyGraph().build_dependency(pruned, example_BCHW)
    for group in groups:
        if group.removed:
            root = pruned.get_submodule(names[group.root])
            function = graph.get_pruner_of_module(root).prune_out_channels
            graph.get_pruning_group(root, function, idxs=group.order[: group.removed]).prune()
    for parameter in pruned.parameters():
        parameter.grad = None
    return pruned.eval()
