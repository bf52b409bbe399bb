"""What every attack needs: the images that it has not fooled yet, its random numbers and its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vivace.robustness.attacks.losses import Network, fooled
from vivace.robustness.attacks.threat import Ball

__all__ = ["Survivors", "Turn"]


@dataclass(frozen=True)
class Turn:
    """One run of an attack on a batch."""

    generator: torch.Generator
    """On the device of the images."""
    deadline: float = float("inf")
    """On the clock of `clock`, seconds: an attack that is over gives what it has."""
    clock: Callable[[], float] = time.monotonic
    judge: Network | None = None
    """Whose answers count, where the attack asks a faster and less exact copy of it; None: it asks the network itself.
    """

    def survivors(self, ball: Ball, labels_B: Tensor) -> Survivors:
        """All images of a batch."""
        return Survivors(ball, labels_B, self.judge)

    def is_over(self) -> bool:
        return self.clock() >= self.deadline


class Survivors:
    """The images of a batch that are still classified correctly. An image is left alone once it is fooled.

    judge: the network that must be fooled too before an image is left alone.
    """

    def __init__(self, ball: Ball, labels_B: Tensor, judge: Network | None = None) -> None:
        self.judge = judge
        self.found = ball.centres.clone()
        """Of each image the point that fools the network, or the image itself."""
        self.ball, self.labels = ball, labels_B
        """Of the images that are left."""
        self.rows = torch.arange(len(labels_B), device=labels_B.device)
        """Their positions in the batch."""

    def __len__(self) -> int:
        return len(self.rows)

    def drop(self, points: Tensor, fooled_B: Tensor) -> Tensor:
        """Keep the points of the images left that are fooled, drop these images, and give the positions of the others.

        points, fooled_B: of the images left.
        """
        if self.judge is not None and bool(fooled_B.any()):
            claimed = fooled_B.nonzero()[:, 0]
            with torch.no_grad():
                hold = fooled(self.judge(points[claimed]), self.labels[claimed])
            fooled_B = torch.zeros_like(fooled_B).index_put((claimed,), hold)
        self.found[self.rows[fooled_B]] = points[fooled_B]
        keep = (~fooled_B).nonzero()[:, 0]
        if len(keep) < len(self.rows):
            self.ball, self.labels, self.rows = self.ball[keep], self.labels[keep], self.rows[keep]
        return keep

    def settle(self, points: Tensor) -> None:
        """As `drop`, at the end of a search: the judge may be fooled by what its copy just was not."""
        if self.judge is not None:
            self.drop(points, torch.ones_like(self.labels, dtype=torch.bool))
