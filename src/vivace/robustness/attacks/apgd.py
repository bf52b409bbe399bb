"""Auto-PGD (Croce & Hein 2020, arXiv:2003.01690): steps along the gradient whose size adapts itself.

Steps have momentum. At checkpoints an image's step size is halved, and it goes back to its best point, if its loss
grew in too few of the last steps, or did not grow at all since the last checkpoint.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vivace.robustness.attacks.losses import Network, fooled, log_odds, loss_and_gradient, targeted_ratio
from vivace.robustness.attacks.running import Survivors, Turn
from vivace.robustness.attacks.threat import Ball

__all__ = ["MAX_TARGETS", "apgd_ce", "apgd_t", "targets_of"]

# the paper's: steps, weight of a step beside momentum, least fraction of steps that must help
STEPS, STEP_WEIGHT, MIN_HELPFUL = 100, 0.75, 0.75
# of the steps: until the first checkpoint, by how much each interval is shorter, and the shortest
FIRST_CHECK, SHORTER, SHORTEST = 22, 3, 6
# of eps
FIRST_SIZE = 2.0
MAX_TARGETS = 9


@dataclass
class _Path:
    """Where the images left are, each a row."""

    point: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    size: Tensor
    """Of a step, [B]."""
    num_helpful: Tensor
    """Steps since the last checkpoint that increased the loss, [B]."""
    was_halved: Tensor
    """At the last checkpoint, bool [B]."""
    checked_loss: Tensor
    """The best loss at the last checkpoint."""

    def __getitem__(self, rows: Tensor) -> _Path:
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def apgd_ce(network: Network, ball: Ball, labels_B: Tensor, turn: Turn) -> Tensor:
    """APGD on cross-entropy, by the loss `log_odds`, which has its directions. Points that fool, or the images."""
    left = turn.survivors(ball, labels_B)
    _climb(network, left, lambda logits, rows: log_odds(logits, labels_B[rows]), turn)
    return left.found


def apgd_t(network: Network, ball: Ball, labels_B: Tensor, turn: Turn) -> Tensor:
    """APGD on the targeted DLR loss, for the nine likeliest wrong classes in turn."""
    left = turn.survivors(ball, labels_B)
    targets_BT = targets_of(network, ball.centres, labels_B)
    for column in range(targets_BT.shape[1]):
        targets_B = targets_BT[:, column]
        if not len(left) or turn.is_over():
            break
        _climb(network, left, functools.partial(_towards, labels_B, targets_B), turn)
    return left.found


def _towards(labels_B: Tensor, targets_B: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    return targeted_ratio(logits, labels_B[rows], targets_B[rows])


def targets_of(network: Network, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
    """int64 [B, T]: the likeliest wrong classes of each image, the likeliest first; T: nine, or all."""
    with torch.no_grad():
        logits_BK = network(images_BCHW).scatter(1, labels_B[:, None], -torch.inf)
    return logits_BK.argsort(1, descending=True)[:, : min(MAX_TARGETS, logits_BK.shape[1] - 1)]


def _climb(network: Network, left: Survivors, loss: Callable[[Tensor, Tensor], Tensor], turn: Turn) -> None:
    """100 steps of the images left; those that are fooled on the way are dropped.

    loss(logits, rows): of images at these positions in the batch.
    """
    start = left.ball.random(turn.generator)
    losses, gradients, logits = loss_and_gradient(network, start, lambda logits: loss(logits, left.rows))
    keep = left.drop(start, fooled(logits, left.labels))
    path = _at(start, losses, gradients, left.ball.threat.eps)[keep]
    interval, since = FIRST_CHECK, 0
    for step in range(STEPS):
        if not len(left) or turn.is_over():
            return
        point = _step(path, left.ball, STEP_WEIGHT if step else 1.0)
        losses, gradients, logits = loss_and_gradient(network, point, lambda logits: loss(logits, left.rows))
        _arrive(path, point, losses, gradients)
        keep = left.drop(point, fooled(logits, left.labels))
        path, since = path[keep] if len(keep) < len(point) else path, since + 1
        if since == interval:
            _check(path, interval)
            interval, since = max(interval - SHORTER, SHORTEST), 0
    left.settle(path.best)


def _at(point: Tensor, losses: Tensor, gradients: Tensor, eps: float) -> _Path:
    return _Path(
        point=point,
        previous=point,
        gradient=gradients,
        loss=losses,
        best=point.clone(),
        best_gradient=gradients.clone(),
        best_loss=losses.clone(),
        size=torch.full_like(losses, FIRST_SIZE * eps),
        num_helpful=torch.zeros_like(losses),
        was_halved=torch.ones_like(losses, dtype=torch.bool),
        checked_loss=losses.clone(),
    )


def _step(path: _Path, ball: Ball, weight: float) -> Tensor:
    """The next point: a projected step, mixed with the last movement, projected again."""
    moved = ball.project(path.point + path.size[:, None, None, None] * ball.steepest(path.gradient))
    momentum = (1 - weight) * (path.point - path.previous)
    return ball.project(path.point + weight * (moved - path.point) + momentum)


def _arrive(path: _Path, point: Tensor, losses: Tensor, gradients: Tensor) -> None:
    path.num_helpful += losses > path.loss
    path.previous, path.point, path.gradient, path.loss = path.point, point, gradients, losses
    better = losses > path.best_loss
    path.best[better], path.best_gradient[better] = point[better], gradients[better]
    path.best_loss = torch.maximum(losses, path.best_loss)


def _check(path: _Path, interval: int) -> None:
    """Halve the step of the paths that oscillate or stand still, and send them back to their best points."""
    stuck = ~path.was_halved & (path.checked_loss >= path.best_loss)
    halved = (path.num_helpful <= MIN_HELPFUL * interval) | stuck
    path.size = torch.where(halved, path.size / 2, path.size)
    rows = halved[:, None, None, None]
    path.point = torch.where(rows, path.best, path.point)
    path.gradient = torch.where(rows, path.best_gradient, path.gradient)
    path.loss = torch.where(halved, path.best_loss, path.loss)
    path.was_halved, path.checked_loss = halved, path.best_loss.clone()
    path.num_helpful = torch.zeros_like(path.num_helpful)
