"""Hard-example sampling: epochs of the images whose loss was highest when they were last seen.

Shapes: N images in the training arrays, n of which are trained on; B images in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivace.training.recipes.recipe import HardExamplesConfig

__all__ = ["HardExamples"]


@dataclass(kw_only=True)
class HardExamples:
    """The last loss of each image, and the order of the current epoch.

    An easy image costs as much as a hard one and teaches less. airbench96 selects half of the images with a small
    network beforehand (arXiv:2404.00498); InfoBatch prunes images of low loss during training (arXiv:2303.04947). Here
    selection costs nothing, as the losses are those of the training steps. The last epochs use all images, so that the
    easy ones are not forgotten.
    """

    config: HardExamplesConfig
    losses_N: Tensor
    """float32, cross-entropy without label smoothing; infinite for images that were not seen yet."""
    times_seen_N: Tensor = field(init=False)
    """int32: how often the run has trained on each image."""
    order_n: np.ndarray | None = None
    """int64, the positions of the current epoch in order; None: the loader's order."""
    begun_at: float = 0.0
    """Fraction of the run that was done when the current epoch began."""

    def __post_init__(self) -> None:
        self.times_seen_N = torch.zeros_like(self.losses_N, dtype=torch.int32)

    def record(self, indices_B: Tensor, losses_B: Tensor) -> None:
        """Store the losses of a batch and count its images as seen, in place."""
        self.losses_N[indices_B] = losses_B.float()
        self.times_seen_N[indices_B] += 1

    def begin_epoch(self, plain_n: np.ndarray, *, progress: float, seed: tuple[int, int]) -> None:
        """Choose the order of an epoch that begins when the fraction `progress` of the run is done.

        plain_n: the order without sampling. Between `start` and `end` of the run it is replaced by as many positions of
        the hardest images only: each is repeated 1 / share times, shuffled anew for each repetition. The result depends
        on the losses and the seed alone. An epoch that would end after `end`, if it were as long as the last one, uses
        all images.
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
        """All state; the tensors are shared, not copied."""
        return {
            "losses": self.losses_N,
            "times_seen": self.times_seen_N,
            "begun_at": self.begun_at,
            "order": None if self.order_n is None else torch.from_numpy(self.order_n),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.losses_N.copy_(tree["losses"])
        self.times_seen_N.copy_(tree["times_seen"])
        self.begun_at = tree["begun_at"]
        self.order_n = None if tree["order"] is None else tree["order"].cpu().numpy().copy()
