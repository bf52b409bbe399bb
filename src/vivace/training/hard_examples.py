"""Epochs made of the images that are still hard: those with the highest loss when they were last seen.

N images of the training arrays, n of them train; B images of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivace.training.recipe import HardExamplesConfig

__all__ = ["HardExamples"]


@dataclass(kw_only=True)
class HardExamples:
    """What each image's loss was when it was last seen, and the order of the epoch that is under way.

    What an image that is long understood teaches costs as much as what a hard one does. A network of its own that
    chooses half of the images beforehand saves a third of airbench96's operations (arXiv:2404.00498); dropping those of
    small loss as one goes is InfoBatch (arXiv:2303.04947). Here the loss costs nothing, for it is that of the training
    step, and the last epochs see all images, so that the easy ones are not forgotten.
    """

    config: HardExamplesConfig
    losses_N: Tensor
    """float32, plain cross-entropy; infinite for what has not been seen."""
    times_seen_N: Tensor = field(init=False)
    """int32: how often the run has seen each image."""
    order_n: np.ndarray | None = None
    """int64, positions in the order of the epoch that is under way; None: the loader's own order."""
    begun_at: float = 0.0
    """Share of the run that was done when the epoch began."""

    def __post_init__(self) -> None:
        self.times_seen_N = torch.zeros_like(self.losses_N, dtype=torch.int32)

    def record(self, indices_B: Tensor, losses_B: Tensor) -> None:
        """Remember the losses of a batch, and that its images were seen, in place."""
        self.losses_N[indices_B] = losses_B.float()
        self.times_seen_N[indices_B] += 1

    def begin_epoch(self, plain_n: np.ndarray, *, progress: float, seed: tuple[int, int]) -> None:
        """Decide the order of an epoch that begins when the share `progress` of the run is done.

        plain_n: the order without focus. In the middle of the run it becomes as many positions, all of the hardest
        share of them: each comes 1 / share times, in another order every time. A function of the losses and the seed.
        An epoch that would reach beyond the middle, were it as long as the one before it, sees all images.
        """
        ends_at = 2 * progress - self.begun_at
        self.order_n, self.begun_at = None, progress
        if progress < self.config.start or ends_at > self.config.end + 1e-9:
            return
        losses_n = self.losses_N.cpu().numpy()[plain_n]
        count = max(2, round(self.config.share * len(plain_n)))
        hardest = plain_n[np.argsort(-losses_n, kind="stable")[:count]]
        rng = np.random.default_rng(seed)
        rounds = [rng.permutation(hardest) for _ in range(-(-len(plain_n) // count))]
        self.order_n = np.concatenate(rounds)[: len(plain_n)]

    def state_dict(self) -> dict[str, Any]:
        """All that changes; the tensors are shared."""
        return {
            "losses": self.losses_N,
            "times_seen": self.times_seen_N,
            "begun_at": self.begun_at,
            "order": None if self.order_n is None else torch.from_numpy(self.order_n),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Take over a tree that `state_dict` gave."""
        self.losses_N.copy_(tree["losses"])
        self.times_seen_N.copy_(tree["times_seen"])
        self.begun_at = tree["begun_at"]
        self.order_n = None if tree["order"] is None else tree["order"].cpu().numpy().copy()
