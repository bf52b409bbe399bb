"""Adversarial training: images moved along the gradient of the loss before each step, and a probe by PGD.

Shapes: B images in a batch. Images are float32 on the scale of stored pixels, 0 to `white`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vivace.errors import ConfigError
from vivace.training.recipes.attack import AttackConfig

__all__ = ["Adversary", "adversary_of", "pgd_right"]

# of 255ths, in which a recipe tells eps
SCALE = 255.0
# PGD's step as a fraction of eps: 2 of 8, as in arXiv:1706.06083
PGD_STEP = 0.25

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """Makes the images of an adversarial training step: N-FGSM (arXiv:2202.01181).

    A uniform start of up to `noise` eps, one step along the sign of the gradient, no projection; within [0, white].
    """

    config: AttackConfig
    white: float = SCALE

    @property
    def eps(self) -> float:
        """On the scale of the pixels."""
        return self.config.eps * self.white / SCALE

    def starts(self, images_BCHW: Tensor, generator: torch.Generator, *, num_rollbacks: int = 0) -> Tensor:
        """Images with uniform noise, float32; uint8 or float images are not changed."""
        noise = self.config.strength(num_rollbacks).noise * self.eps
        images = images_BCHW.float()
        if noise == 0:
            return images
        # the strides of the images are kept: own kernels take channels_last alone
        uniform = torch.empty_like(images).uniform_(-noise, noise, generator=generator)
        return (images + uniform).clamp_(0, self.white)

    def attacked(self, starts_BCHW: Tensor, loss: Loss, *, num_rollbacks: int = 0) -> Tensor:
        """The starts after one step that makes `loss` of them larger, detached.

        loss: images_BCHW → a scalar; only the sign of its gradient matters.
        """
        starts = starts_BCHW.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(starts), starts)
        step = self.config.strength(num_rollbacks).step * self.eps
        return torch.add(starts.detach(), gradient.sign(), alpha=step).clamp_(0, self.white)


def adversary_of(config: AttackConfig, *, is_raw: bool) -> Adversary | None:
    """What attacks the images of a recipe; None: nothing. Raises ConfigError for images that are no 8-bit pictures."""
    if not config.eps:
        return None
    if is_raw:
        raise ConfigError(
            f"attack.eps is of pictures of 8 bits: got {config.eps:g} and images that are kept as they are. Set "
            "attack.eps=0."
        )
    return Adversary(config=config)


def pgd_right(
    answer: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    eps: float,
    white: float,
    steps: int,
    generator: torch.Generator,
) -> int:
    """How many images PGD left right at every one of its steps: an upper bound of what stronger attacks leave.

    answer: images_BCHW → logits_BK. batches: (images_BCHW, labels_B int64). eps: on the scale of the pixels.
    Projected gradient steps of eps / 4 on the cross-entropy from a random start (arXiv:1706.06083); an image that is
    wrong as it is, or at any point on the way, counts as wrong.
    """
    right = 0
    for images_BCHW, labels_B in batches:
        clean = images_BCHW.float()
        with torch.no_grad():
            kept = answer(clean).argmax(1) == labels_B
        lower, upper = (clean - eps).clamp_min(0), (clean + eps).clamp_max(white)
        points = torch.empty_like(clean).uniform_(-eps, eps, generator=generator).add_(clean)
        points = torch.maximum(torch.minimum(points, upper), lower)
        for _ in range(steps):
            points.requires_grad_(True)
            logits = answer(points).float()
            kept &= logits.detach().argmax(1) == labels_B
            (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, labels_B, reduction="sum"), points)
            points = torch.add(points.detach(), gradient.sign(), alpha=PGD_STEP * eps)
            points = torch.maximum(torch.minimum(points, upper), lower)
        with torch.no_grad():
            kept &= answer(points).argmax(1) == labels_B
        right += int(kept.sum())
    return right
