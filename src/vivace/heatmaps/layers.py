"""Where in a network a heat map is taken from: its last layer that still knows where in the image something is.

Shape suffixes: B images, C channels, H, W positions of a map, T tokens, D their features.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vivace.errors import ModelError

__all__ = ["Layer", "find_layer", "replaced_output"]

# a map of 2 × 2 tells a corner from another and no more; what comes before one of 3 × 3 is often a convolution without
# its activation, whose maps do worse in the deletion test
MIN_SIDE = 3
# class and register tokens
MAX_PREFIX = 16
# these hand on what another layer made, or weigh places against each other: an attention matrix is no map
NO_MAPS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Softmax)


@dataclass(frozen=True)
class Layer:
    """One call of a module, whose output has a value for each place of the image."""

    name: str
    """The module's, as `named_modules` has it."""
    call: int
    """Which of its calls in a forward pass, from 0: networks use one activation many times."""
    kind: str
    """maps [B, C, H, W], last [B, H, W, C] or tokens [B, T, D]."""
    side: int
    """H and W, or of the tokens of patches."""

    def grid(self, output: Tensor) -> Tensor:
        """[B, C, side, side] of what the layer gave."""
        if self.kind == "maps":
            return output
        if self.kind == "last":
            return output.permute(0, 3, 1, 2)
        patches_BTD = output[:, output.shape[1] - self.side**2 :]
        return patches_BTD.transpose(1, 2).unflatten(2, (self.side, self.side))


def find_layer(model: nn.Module, images_BCHW: Tensor) -> Layer:
    """The last layer with a value for each place that the logits depend on, by one pass forwards and one back.

    images_BCHW: two normalised images or more, float32. The layer has 3 × 3 places or more, or as many as there are
    anywhere in the network. Raises ModelError for a network without such a layer.
    """
    records, logits_BK = _recorded(model, images_BCHW)
    found = [record for record in records if record.layer is not None]
    asked = logits_BK.amax(1).sum()
    gradients = torch.autograd.grad(asked, [one.output for one in found], allow_unused=True) if found else ()
    # a class token alone goes on to the head: the patches of the last block are not asked
    told = [one for one, gradient in zip(found, gradients, strict=True) if gradient is not None and _any(one, gradient)]
    if not told:
        raise ModelError(
            "no layer of the network keeps the places of an image: it has no map of 2 x 2 or more, and no tokens of "
            "patches, before its logits. Heat maps need one; leave them out."
        )
    large = [one for one in told if one.layer.side >= MIN_SIDE]
    last = large[-1] if large else max(reversed(told), key=lambda one: one.layer.side)
    # the innermost module that made this very tensor; containers give it on
    return next(one.layer for one in told if one.key == last.key)


def _any(record: _Record, gradient: Tensor) -> bool:
    assert record.layer is not None
    return bool((record.layer.grid(gradient) != 0).any())


@dataclass(frozen=True)
class _Record:
    layer: Any
    output: Tensor
    key: tuple[int, int]
    """Of the tensor and its version: an activation that works in place gives the tensor it was given."""


def _recorded(model: nn.Module, images_BCHW: Tensor) -> tuple[list[_Record], Tensor]:
    """What every module gave, in the order in which they ended, and the logits."""
    records: list[_Record] = []
    calls: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, _: Any, output: Any) -> None:
            call = calls[name] = calls.get(name, -1) + 1
            if isinstance(output, Tensor) and output.requires_grad and not isinstance(module, NO_MAPS):
                kind, side = _places(output, images_BCHW)
                layer = Layer(name, call, kind, side) if kind else None
                records.append(_Record(layer, output, (id(output), output._version)))

        return keep

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if module is not model:
                hooks.callback(module.register_forward_hook(hook(name)).remove)
        with torch.enable_grad():
            logits_BK = model(images_BCHW.detach().clone().requires_grad_(True))
    return records, logits_BK


def _places(output: Tensor, images_BCHW: Tensor) -> tuple[str, int]:
    """(kind, side) of an output with places; ("", 0) of another."""
    shape, most = output.shape, images_BCHW.shape[-1]
    if not output.is_floating_point() or output.dim() < 3 or shape[0] != len(images_BCHW):
        return "", 0
    if output.dim() == 4:
        for kind, height, width in (("maps", shape[2], shape[3]), ("last", shape[1], shape[2])):
            if height == width and 2 <= height <= most:
                return kind, height
    if output.dim() == 3:
        side = math.isqrt(shape[1])
        if 2 <= side <= most and shape[1] - side**2 <= MAX_PREFIX:
            return "tokens", side
    return "", 0


@contextlib.contextmanager
def replaced_output(model: nn.Module, layer: Layer) -> Iterator[list[Tensor]]:
    """While the block runs, what a layer gives is where gradients begin, and is appended to the list.

    Nothing before the layer is kept for gradients, so that a map costs little more than an answer.
    """
    kept: list[Tensor] = []
    calls = 0

    def begin(_: nn.Module, inputs: Any) -> None:
        nonlocal calls
        calls = 0

    def replace(_: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        if calls - 1 != layer.call:
            return None
        kept.append(output.detach().requires_grad_(True))
        # what comes next may work in place
        return kept[-1].clone()

    first = model.register_forward_pre_hook(begin)
    inner = model.get_submodule(layer.name).register_forward_hook(replace)
    try:
        yield kept
    finally:
        first.remove()
        inner.remove()
