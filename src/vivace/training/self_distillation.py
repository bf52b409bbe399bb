"""Targets that hold what the network itself last said of an image: progressive self-distillation (arXiv:2006.12000).

N images of the training arrays, B of a batch, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["SelfDistillation"]


class SelfDistillation:
    """What the network answered to each image when it last trained on it; before that, the image's smoothed label.

    The answers cost nothing, for they are those of the training steps. With alternating flips an image was last seen in
    the mirror: what is learnt is to answer both alike.
    """

    def __init__(
        self,
        weight: float,
        labels_N: np.ndarray,
        num_classes: int,
        *,
        label_smoothing: float,
        device: torch.device,
    ) -> None:
        """weight: share of the loss that is the own answers' at the end of the run; it grows with the run from none."""
        self.weight = weight
        hard_NK = functional.one_hot(torch.as_tensor(labels_N, dtype=torch.int64), num_classes).float()
        self.probs_NK = (hard_NK * (1 - label_smoothing) + label_smoothing / num_classes).to(device)

    def blend(
        self,
        loss: Tensor,
        logits_BK: Tensor,
        indices_B: Tensor,
        *,
        progress: float,
        weights_B: Tensor | None = None,
    ) -> Tensor:
        """`loss` of the labels → with the own answers': (1 - share) · loss + share · cross-entropy, a float32 scalar.

        progress: share of the run that is done, [0, 1]; share = weight · progress. weights_B: the weight of each image
        in `loss`; None: 1.
        """
        share = self.weight * progress
        own_B = functional.cross_entropy(logits_BK.float(), self.probs_NK[indices_B], reduction="none")
        return (1 - share) * loss + share * (own_B if weights_B is None else own_B * weights_B).mean()

    def record(self, indices_B: Tensor, probs_BK: Tensor) -> None:
        """Remember the answers to a batch, in place."""
        self.probs_NK[indices_B] = probs_BK.float()

    def state_dict(self) -> dict[str, Any]:
        """All that changes; the tensor is shared."""
        return {"probs": self.probs_NK}

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Take over a tree that `state_dict` gave."""
        self.probs_NK.copy_(tree["probs"])
