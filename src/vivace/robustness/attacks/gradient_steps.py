"""FGSM and PGD: what gives a first impression of robustness, and always too good a one."""

from __future__ import annotations

from torch import Tensor

from vivace.robustness.attacks.losses import Network, fooled, log_odds, loss_and_gradient
from vivace.robustness.attacks.running import Turn
from vivace.robustness.attacks.threat import Ball

__all__ = ["fgsm", "pgd"]

PGD_STEPS = 50
# of eps times 2.5, so that a path can reach the border from anywhere (Madry et al. 2017, arXiv:1706.06083)
PGD_REACH = 2.5


def fgsm(network: Network, ball: Ball, labels_B: Tensor, turn: Turn) -> Tensor:
    """One step as long as eps along the gradient (Goodfellow et al. 2014, arXiv:1412.6572). Points, fooled or not."""
    _, gradients, _ = loss_and_gradient(network, ball.centres, lambda logits: log_odds(logits, labels_B))
    return ball.project(ball.centres + ball.threat.eps * ball.steepest(gradients))


def pgd(network: Network, ball: Ball, labels_B: Tensor, turn: Turn) -> Tensor:
    """50 projected steps along the gradient from a random start (Madry et al. 2017, arXiv:1706.06083)."""
    left = turn.survivors(ball, labels_B)
    points = ball.random(turn.generator)
    size = PGD_REACH * ball.threat.eps / PGD_STEPS
    for step in range(PGD_STEPS + 1):
        _, gradients, logits = loss_and_gradient(network, points, lambda logits: log_odds(logits, left.labels))
        keep = left.drop(points, fooled(logits, left.labels))
        if step == PGD_STEPS or not len(left) or turn.is_over():
            left.settle(points[keep])
            break
        points, gradients = points[keep], gradients[keep]
        points = left.ball.project(points + size * left.ball.steepest(gradients))
    return left.found
