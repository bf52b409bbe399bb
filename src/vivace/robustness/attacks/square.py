"""Square (Andriushchenko et al. 2019, arXiv:1912.00049): random search by squares, which asks for no gradient.

It finds what gradients do not show, and works on anything that answers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vivace.robustness.attacks.losses import Network, fooled, margin
from vivace.robustness.attacks.running import Survivors, Turn
from vivace.robustness.attacks.threat import MARGIN, Ball

__all__ = ["square"]

# the paper's, as AutoAttack has them: queries, and the fraction of an image that the first squares cover
QUERIES, FIRST_SHARE = 5000, 0.8
# the fraction is halved after so many queries
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# side of the first tiles of L2, as a fraction of the image's
TILES = 5


def square(network: Network, ball: Ball, labels_B: Tensor, turn: Turn) -> Tensor:
    """5,000 queries for each image at most. Points that fool the network, or the images."""
    left = turn.survivors(ball, labels_B)
    propose = _squares if ball.threat.norm == "linf" else _windows
    points = _stripes(ball, turn.generator) if ball.threat.norm == "linf" else _tiled(ball, turn.generator)
    points, margins = _ask(network, left, points)
    for query in range(QUERIES):
        if not len(left) or turn.is_over():
            break
        side = math.sqrt(FIRST_SHARE / 2 ** sum(query > at for at in HALVINGS) * math.prod(points.shape[-2:]))
        proposed = propose(left.ball, points, side, turn.generator)
        with torch.no_grad():
            logits = network(proposed)
        new_margins = margin(logits, left.labels)
        better = new_margins < margins
        points = torch.where(better[:, None, None, None], proposed, points)
        margins = torch.where(better, new_margins, margins)
        hit = fooled(logits, left.labels)
        if bool(hit.any()):
            keep = left.drop(proposed, hit)
            points, margins = points[keep], margins[keep]
    left.settle(points)
    return left.found


def _ask(network: Network, left: Survivors, points: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits = network(points)
    margins = margin(logits, left.labels)
    keep = left.drop(points, fooled(logits, left.labels))
    return points[keep], margins[keep]


def _signs(shape: tuple[int, ...], ball: Ball, generator: torch.Generator) -> Tensor:
    """-1 or 1."""
    return 2.0 * torch.randint(0, 2, shape, generator=generator, device=ball.centres.device) - 1


def _stripes(ball: Ball, generator: torch.Generator) -> Tensor:
    """Each column of each channel as bright, or as dark, as it may be."""
    batch, channels, _, width = ball.centres.shape
    return torch.where(_signs((batch, channels, 1, width), ball, generator) > 0, ball.upper, ball.lower)


def _squares(ball: Ball, points: Tensor, side: float, generator: torch.Generator) -> Tensor:
    """The points with one square each, as bright or as dark in each channel as it may be."""
    batch, channels, height, width = points.shape
    side = min(max(round(side), 1), height, width)
    rows, columns = (_placed(length, side, batch, ball, generator) for length in (height, width))
    brighter = _signs((batch, channels, 1, 1), ball, generator) > 0
    inside = _between(rows, side, height)[:, None, :, None] & _between(columns, side, width)[:, None, None]
    return torch.where(inside, torch.where(brighter, ball.upper, ball.lower), points)


def _placed(length: int, side: int, batch: int, ball: Ball, generator: torch.Generator) -> Tensor:
    return torch.randint(0, length - side + 1, (batch,), generator=generator, device=ball.centres.device)


def _between(starts_B: Tensor, side: int, length: int) -> Tensor:
    """bool [B, length]: from each start on, `side` places."""
    places = torch.arange(length, device=starts_B.device) - starts_B[:, None]
    return (places >= 0) & (places < side)


def _tiled(ball: Ball, generator: torch.Generator) -> Tensor:
    """The images with a pattern of tiles, of length eps."""
    batch, channels, height, width = ball.centres.shape
    side = max(height // TILES, 1)
    change = torch.zeros_like(ball.centres)
    for top in range(0, side * (height // side), side):
        for start in range(0, side * (width // side), side):
            pattern = _bumps(side, batch, ball, generator) * _signs((batch, channels, 1, 1), ball, generator)
            change[:, :, top : top + side, start : start + side] = pattern
    return _at_length(ball, change)


def _at_length(ball: Ball, change: Tensor) -> Tensor:
    eps = ball.threat.eps * (1 - MARGIN)
    return (ball.centres + eps * ball.scaled(change)).clamp(0, 1)


def _windows(ball: Ball, points: Tensor, side: float, generator: torch.Generator) -> Tensor:
    """The points with the change of one window moved to another, where it gets a new pattern (the paper's algorithm 3).

    What the change has left of eps, and what the two windows had, goes into the new window.
    """
    batch, channels, height, width = points.shape
    # an odd side, so that a pattern has a middle
    side = min(max(round(side), 3) // 2 * 2 + 1, height, width)
    to, source = ([_placed(length, side, batch, ball, generator) for length in (height, width)] for _ in range(2))
    inside_to, inside_source = (
        _between(rows, side, height)[:, None, :, None] & _between(columns, side, width)[:, None, None]
        for rows, columns in (to, source)
    )
    change = points - ball.centres
    spare = (ball.threat.eps**2 - change.flatten(1).square().sum(1)).clamp_min(0)[:, None, None, None]
    windows = (change.square() * (inside_to | inside_source)).sum((2, 3), keepdim=True)
    old = _window(change, to, side)
    old = old / old.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    new = _bumps(side, batch, ball, generator) * _signs((batch, channels, 1, 1), ball, generator) + old
    new = new / new.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    new = new * (spare / channels + windows).sqrt()
    change = change * ~inside_source
    change[_window_index(batch, channels, to, side)] = new
    return _at_length(ball, change)


def _window_index(batch: int, channels: int, corner: list[Tensor], side: int) -> tuple[Tensor, ...]:
    device, places = corner[0].device, torch.arange(side, device=corner[0].device)
    rows, columns = (start[:, None] + places for start in corner)
    images = torch.arange(batch, device=device)[:, None, None, None]
    return images, torch.arange(channels, device=device)[:, None, None], rows[:, None, :, None], columns[:, None, None]


def _window(change: Tensor, corner: list[Tensor], side: int) -> Tensor:
    batch, channels = change.shape[:2]
    return change[_window_index(batch, channels, corner, side)]


def _bumps(side: int, batch: int, ball: Ball, generator: torch.Generator) -> Tensor:
    """[B, 1, side, side] of length 1: a bump upwards beside one downwards, side by side or one above the other."""
    half = side // 2
    pattern = torch.cat([_bump(half, side), -_bump(side - half, side)]).to(ball.centres.device)
    pattern = pattern / pattern.norm().clamp_min(1e-12)
    turned = torch.randint(0, 2, (batch, 1, 1, 1), generator=generator, device=ball.centres.device) > 0
    return torch.where(turned, pattern.T, pattern)


def _bump(height: int, width: int) -> Tensor:
    """float32 [height, width] of length 1: rectangles around the middle, of which the k-th adds 1 / k²."""
    count = max(height // 2, width // 2) + 1
    rows = (torch.arange(height) - height // 2).abs()[:, None]
    distance = torch.maximum(rows, (torch.arange(width) - width // 2).abs()[None])
    # sums from the outermost rectangle inwards: a place at distance d is in those from the d-th on
    sums = (1 / torch.arange(1, count + 1).double().square()).flip(0).cumsum(0).flip(0).float()
    bump = sums[distance.clamp_max(count - 1)]
    return bump / bump.norm().clamp_min(1e-12)
