"""What attacks maximise. Shapes: logits_BK float, labels_B int64; a loss of each image, [B]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Loss", "Network", "fooled", "log_odds", "loss_and_gradient", "margin", "targeted_ratio"]

# images_BCHW float32 in [0, 1] → logits_BK float32
Network = Callable[[Tensor], Tensor]
# (logits_BK, positions of its images in the batch) → loss_B
Loss = Callable[[Tensor, Tensor], Tensor]


def fooled(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """bool [B]: the first of the largest logits is another class."""
    return logits_BK.argmax(1) != labels_B


def log_odds(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """The log-odds of all other classes against the true one: log(sum of exp(other logits)) - true logit.

    Cross-entropy is log(1 + exp(this)), which grows with it: both have the same maximum, and for each image gradients
    of one direction. But where a network is certain, the gradient of cross-entropy vanishes in float32, and this does
    not: certainty alone then passes for robustness.
    """
    others = logits_BK.scatter(1, labels_B[:, None], -torch.inf)
    return others.logsumexp(1) - logits_BK.gather(1, labels_B[:, None])[:, 0]


def margin(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """The true logit less the largest other one: negative for a mistake."""
    others = logits_BK.scatter(1, labels_B[:, None], -torch.inf)
    return logits_BK.gather(1, labels_B[:, None])[:, 0] - others.amax(1)


def targeted_ratio(logits_BK: Tensor, labels_B: Tensor, targets_B: Tensor) -> Tensor:
    """The difference of logits, target less true class, as a ratio to the spread of the largest ones.

    The targeted DLR loss of Croce & Hein 2020, arXiv:2003.01690, equation 5, which does not change with the logits'
    scale: (target - true) / (first - (third + fourth) / 2). With three classes the spread is first - third; with two
    it is 1, as no other logit is left.
    """
    both = logits_BK.gather(1, torch.stack([targets_B, labels_B], 1))
    difference = both[:, 0] - both[:, 1]
    if logits_BK.shape[1] < 3:
        return difference
    largest = logits_BK.topk(min(4, logits_BK.shape[1]), 1).values
    spread = largest[:, 0] - (largest[:, 2] if largest.shape[1] == 3 else (largest[:, 2] + largest[:, 3]) / 2)
    return difference / (spread + 1e-12)


def loss_and_gradient(
    network: Network, points: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss_B, its gradient at each point, logits_BK), detached."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits_BK = network(points)
        losses_B = loss(logits_BK)
        (gradients,) = torch.autograd.grad(losses_B.sum(), points)
    return losses_B.detach(), gradients, logits_BK.detach()
