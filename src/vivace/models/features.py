"""What a network's last layer is given, while it answers: the features that its classes are told by."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vivace.models.parts import last_layer

__all__ = ["LastFeatures"]


class LastFeatures:
    """Takes along the input of the layer that gives the logits; threads may use it at the same time.

    features = LastFeatures(model, num_classes)
    with features.taken() as batches:
        model(images_BCHW)
    features_BD = LastFeatures.joined(batches)
    """

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        """Adds a hook to the network, which does nothing outside of `taken`."""
        self._own = threading.local()
        layer = last_layer(model, num_classes)
        self._handle = None if layer is None else layer.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        batches = getattr(self._own, "batches", None)
        if batches is not None and inputs:
            batches.append(_pooled(inputs[0].detach()))

    @contextlib.contextmanager
    def taken(self) -> Iterator[list[Tensor | None]]:
        """A list that grows by the features of each batch, float32 on the CPU; None where they have another shape."""
        self._own.batches = []
        try:
            yield self._own.batches
        finally:
            self._own.batches = None

    def remove(self) -> None:
        """Take the hook from the network again."""
        if self._handle is not None:
            self._handle.remove()

    @staticmethod
    def joined(batches: list[Tensor | None], count: int) -> Tensor | None:
        """float32 [count, D]; None if the layer was not called once for each of `count` images."""
        known = [batch for batch in batches if batch is not None]
        if len(known) != len(batches) or sum(len(batch) for batch in known) != count or not known:
            return None
        return torch.cat(known)


def _pooled(given: Tensor) -> Tensor | None:
    """[B, D] of [B, D], of maps [B, D, H, W], or of tokens [B, T, D]."""
    if given.dim() == 4:
        given = given.mean((2, 3))
    elif given.dim() == 3:
        given = given.mean(1)
    return given.float().cpu() if given.dim() == 2 else None
