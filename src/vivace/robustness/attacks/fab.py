"""FAB-T, the fast adaptive boundary attack (Croce & Hein 2019, arXiv:1907.02044), targeted as in arXiv:2003.01690.

It looks for the nearest point of another class, rather than for a point of large loss: it projects onto the linearised
decision boundary, and is drawn back to the image. It stops once the point is near enough.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vivace.robustness.attacks.apgd import targets_of
from vivace.robustness.attacks.losses import Network, fooled, loss_and_gradient
from vivace.robustness.attacks.running import Survivors, Turn
from vivace.robustness.attacks.threat import Ball, norms_of

__all__ = ["fab_t", "onto_boundary"]

# the paper's: steps, largest weight of the projection of the image itself, overshoot, step back once a point is found
STEPS, MAX_PULL, OVERSHOOT, STEP_BACK = 100, 0.1, 1.05, 0.9
# Newton steps of a projection: each leaves fewer pixels that have not reached 0 or 1, so that a handful are enough
MAX_NEWTON = 60


def fab_t(network: Network, ball: Ball, labels_B: Tensor, turn: Turn) -> Tensor:
    """For the nine likeliest wrong classes in turn. Points that fool the network within eps, or the images."""
    left = turn.survivors(ball, labels_B)
    targets_BT = targets_of(network, ball.centres, labels_B)
    for column in range(targets_BT.shape[1]):
        if not len(left) or turn.is_over():
            break
        _approach(network, left, targets_BT[:, column], turn)
    return left.found


def _approach(network: Network, left: Survivors, targets_B: Tensor, turn: Turn) -> None:
    points = left.ball.centres
    for _ in range(STEPS):
        if not len(left) or turn.is_over():
            return
        both = torch.stack([targets_B[left.rows], left.labels], 1)
        leads, gradients, _ = loss_and_gradient(network, points, functools.partial(_lead, both=both))
        points = _nearer(points, left.ball.centres, leads, gradients, left.ball.threat.norm)
        with torch.no_grad():
            over = fooled(network(points), left.labels)
        keep = left.drop(points, over & left.ball.contains(points))
        points, over = points[keep], over[keep]
        # what is of another class, but too far away, goes back towards the image
        centres = left.ball.centres
        points = torch.where(over[:, None, None, None], centres + (points - centres) * STEP_BACK, points)


def _lead(logits_BK: Tensor, *, both: Tensor) -> Tensor:
    """By how much the logit of the target, the first of both, exceeds that of the true class."""
    pair = logits_BK.gather(1, both)
    return pair[:, 0] - pair[:, 1]


def _nearer(points: Tensor, centres: Tensor, leads: Tensor, gradients: Tensor, norm: str) -> Tensor:
    """A step to the linearised boundary, from the point and from the image, of which the nearer has more weight."""
    flat, offset = gradients.flatten(1), leads - (gradients * points).flatten(1).sum(1)
    count = len(points)
    changes = onto_boundary(
        torch.cat([points.flatten(1), centres.flatten(1)]), torch.cat([flat, flat]), torch.cat([offset, offset]), norm
    )
    lengths = norms_of(changes, norm).clamp_min(1e-8)
    pull = (lengths[:count] / (lengths[:count] + lengths[count:])).clamp(0, MAX_PULL)[:, None, None, None]
    here, there = (OVERSHOOT * part.view_as(points) for part in (changes[:count], changes[count:]))
    return ((points + here) * (1 - pull) + (centres + there) * pull).clamp(0, 1)


def onto_boundary(points_BD: Tensor, normals_BD: Tensor, offsets_B: Tensor, norm: str) -> Tensor:
    """The smallest change that puts each point on its hyperplane, normal · x + offset = 0, and within [0, 1].

    Where no point of [0, 1] is on it, the change that comes nearest. norm: "linf" or "l2". Every pixel moves towards
    the hyperplane at a rate of its own (1 for Linf, its part of the normal for L2) until it is 0 or 1: the distance
    covered is concave and piecewise linear in how long they move, so Newton's method finds it in finitely many steps.
    """
    values = (normals_BD * points_BD).sum(1) + offsets_B
    directions = -normals_BD.sign() * values.sign()[:, None]
    weights = normals_BD.abs()
    rates = torch.ones_like(weights) if norm == "linf" else weights
    # how far each pixel can go; those without influence stay
    rooms = torch.where(directions > 0, 1 - points_BD, points_BD).clamp_min(0) * (weights > 0)
    wanted, times = values.abs(), torch.zeros_like(values)
    slopes = weights * rates
    for _ in range(MAX_NEWTON):
        reached = times[:, None] * rates
        free = reached < rooms
        covered = (weights * torch.minimum(reached, rooms)).sum(1)
        slope = (slopes * free).sum(1)
        missing = wanted - covered
        # nothing moves any more, or rounding is all that is missing
        step = torch.where((slope > 0) & (missing > 1e-6 * wanted), missing / slope.clamp_min(1e-30), 0.0)
        if not bool((step > 0).any()):
            break
        times = times + step
    return directions * torch.minimum(times[:, None] * rates, rooms)
