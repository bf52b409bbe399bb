"""DataFacts: what the named recipes depend on (no torch here)."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["DataFacts"]


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The facts that a recipe may depend on."""

    num_images: int
    """Images in the training split, the validation images included."""
    num_classes: int
    channels: int
    side: int
    """Typical shorter side of the images, px."""
    seconds: float | None = None
    """Time budget of a run on a CPU, process start to saved bundle. None: no time budget, or a GPU."""
    raw: bool = False
    """Images are kept as they are: of 16 bits, of floats, or of other channels than grey and RGB."""
    speed: float = 1.0
    """How fast this machine trains, in (0, 1]: 1 is at least as fast as the one that budgets were measured on."""
    weights_at_hand: bool = False
    """Whether published weights of PACKAGED_NETWORK are on this machine: in an installed package or a cache."""

    @property
    def seconds_per_image(self) -> float:
        """Of the time budget, s on the machine that budgets were measured on; infinite without a budget."""
        return math.inf if self.seconds is None else self.seconds * self.speed / self.num_images

    @property
    def small(self) -> bool:
        """Whether these are small images and not photos."""
        return self.side <= 64

    @property
    def small_size(self) -> int:
        """The side that small images are trained at, px."""
        return 32 if self.side <= 40 else 64
