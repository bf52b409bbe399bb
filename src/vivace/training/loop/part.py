"""What a run trains in place of its whole network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["Part"]


class Part(Protocol):
    """The rear part of a network, trained on what its front gives. The weights before it need no gradient."""

    epochs: int | None
    """How long it is trained if a time budget has room for more; None: as long as the budget says."""

    def __call__(
        self,
        images_BCHW: Tensor,
        labels_B: Tensor,
        indices_B: Tensor,
        *,
        times_seen: int | Tensor,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """(input of the part, targets) in place of images, as `Augment` gives them."""
        ...

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The part of a network in training: its input → logits_BK."""
        ...

    def logits(self, model: nn.Module, split: str) -> tuple[Tensor, Tensor]:
        """logits_NK float32 and labels_N of a split, by a network in evaluation."""
        ...
