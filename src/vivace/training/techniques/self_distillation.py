"""Progressive self-distillation: targets mixed with the network's own earlier predictions (arXiv:2006.12000).

Shapes: N images in the training arrays, B in a batch, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vivace.training.techniques.tasks import ONE_CLASS, Task

__all__ = ["SelfDistillation"]


class SelfDistillation:
    """The network's last prediction for each image; before the first one, its smoothed label.

    The predictions cost nothing, as they are those of the training steps. With alternating flips an image was last seen
    mirrored, so the network also learns to predict the same for both.
    """

    def __init__(
        self,
        weight: float,
        labels_N: np.ndarray,
        num_classes: int,
        *,
        label_smoothing: float,
        device: torch.device,
        task: Task = ONE_CLASS,
    ) -> None:
        """weight: fraction of the loss for earlier predictions at the end of the run; it grows linearly from 0."""
        self.weight, self._task = weight, task
        hard_NK = task.targets(torch.as_tensor(labels_N, dtype=torch.int64), num_classes)
        # the smoothed target of a label of several is half-way between yes and no
        smoothed_into = num_classes if task.label_sets_MK is None else 2
        self.probs_NK = (hard_NK * (1 - label_smoothing) + label_smoothing / smoothed_into).to(device)

    def blend(
        self,
        loss: Tensor,
        logits_BK: Tensor,
        indices_B: Tensor,
        *,
        progress: float,
        weights_B: Tensor | None = None,
    ) -> Tensor:
        """(1 - f) · loss + f · cross-entropy to the earlier predictions, a float32 scalar, with f = weight · progress.

        loss: that of the labels. progress: fraction of the run that is done, [0, 1]. weights_B: the weight of each
        image in `loss`; None: 1.
        """
        fraction = self.weight * progress
        if self._task.label_sets_MK is None:
            losses_B = functional.cross_entropy(logits_BK.float(), self.probs_NK[indices_B], reduction="none")
        else:
            losses_B = functional.binary_cross_entropy_with_logits(
                logits_BK.float(), self.probs_NK[indices_B], reduction="none"
            ).sum(1)
        return (1 - fraction) * loss + fraction * (losses_B if weights_B is None else losses_B * weights_B).mean()

    def probs(self, logits_BK: Tensor) -> Tensor:
        """What `record` takes of an answer."""
        return self._task.probs(logits_BK)

    def record(self, indices_B: Tensor, probs_BK: Tensor) -> None:
        """Store the predictions for a batch, in place."""
        self.probs_NK[indices_B] = probs_BK.float()

    def state_dict(self) -> dict[str, Any]:
        """All state; the tensor is shared, not copied."""
        return {"probs": self.probs_NK}

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.probs_NK.copy_(tree["probs"])
