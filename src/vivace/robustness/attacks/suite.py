"""Runs attacks one after another on the images that are left, and believes none of their results unchecked.

The standard suite is that of AutoAttack (Croce & Hein 2020, arXiv:2003.01690): APGD on cross-entropy, targeted APGD,
targeted FAB, Square. An image counts as robust if nothing fooled the network on it. FGSM and PGD go first: they fool
most of what falls at all in a fraction of the time, and what they miss tells whether gradients are masked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vivace.robustness.attacks.apgd import apgd_ce, apgd_t
from vivace.robustness.attacks.fab import fab_t
from vivace.robustness.attacks.gradient_steps import fgsm, pgd
from vivace.robustness.attacks.losses import Network, fooled
from vivace.robustness.attacks.running import Turn
from vivace.robustness.attacks.square import square
from vivace.robustness.attacks.threat import Ball, Threat

__all__ = ["ATTACKS", "METHODS", "STANDARD", "AttackRun", "Outcome", "run_attacks"]

Attack = Callable[[Network, Ball, Tensor, Turn], Tensor]
ATTACKS: dict[str, Attack] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "apgd-ce": apgd_ce,
    "apgd-t": apgd_t,
    "fab-t": fab_t,
    "square": square,
}
METHODS = tuple(ATTACKS)
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
# attacks that see all images, not only those left, because what one finds and another misses is a finding
ON_ALL = ("fgsm", "pgd")


@dataclass(frozen=True)
class AttackRun:
    """One attack."""

    name: str
    num_attacked: int
    num_fooled: int
    num_left: int
    """Images on which nothing has fooled the network so far."""
    num_refused: int
    """Results that did not hold: outside of the ball or [0, 1], or classified correctly by a fresh forward pass."""
    is_complete: bool
    """Whether it had all the time that it wanted."""
    seconds: float


@dataclass
class Outcome:
    """What a suite found. Shapes: N images."""

    is_correct_N: Tensor
    """bool: classified correctly as they are."""
    is_robust_N: Tensor
    """bool: correctly, whatever was tried."""
    adversarial_NCHW: Tensor
    """float32: of each image a point that fools the network, or the image."""
    runs: list[AttackRun] = field(default_factory=list)
    fooled_by: dict[str, Tensor] = field(default_factory=dict)
    """By attack: bool [N]."""
    num_without_gradient: int = 0
    """Of the correct images, those whose gradient is zero."""


def run_attacks(
    network: Network,
    images_NCHW: Tensor,
    labels_N: Tensor,
    threat: Threat,
    *,
    methods: Sequence[str] = METHODS,
    batch_size: int = 250,
    seed: int = 0,
    deadline: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    begins: Callable[[str, int], None] = lambda name, total: None,
    searched: Network | None = None,
) -> Outcome:
    """The worst that the attacks do to a network.

    images_NCHW: float32 in [0, 1], on the device of the network; labels_N: int64, there too. methods: names of
    `ATTACKS`, in their order. batch_size: images that are attacked together. deadline: on `clock`, seconds; attacks
    stop there, and images that they did not finish count as robust. begins is called with (attack, images left to it),
    progress with (attack, images, images in all). searched: a faster and less exact copy of the network, which attacks
    ask in its place; what fools it counts only if it fools the network.
    """
    with torch.no_grad():
        parts = _batches(torch.arange(len(labels_N), device=labels_N.device), batch_size)
        correct = torch.cat([~fooled(network(images_NCHW[rows]), labels_N[rows]) for rows in parts])
    outcome = Outcome(correct, correct.clone(), images_NCHW.clone())
    target = _Target(network, searched, images_NCHW, labels_N, threat)
    for number, name in enumerate(METHODS):
        if name not in methods:
            continue
        rows_M = _left_to(outcome, name).nonzero()[:, 0]
        if clock() < deadline:
            begins(name, len(rows_M))
        run = _Running(name, len(outcome.is_correct_N), rows_M.device)
        started = time.perf_counter()
        for count, rows in enumerate(_batches(rows_M, batch_size)):
            if clock() >= deadline:
                run.is_complete = False
                break
            judge = None if searched is None else network
            turn = Turn(_generator((seed, number, count), images_NCHW.device), deadline, clock, judge)
            _attack(target, run, outcome, rows, turn)
            progress(name, run.num_attacked, len(rows_M))
        outcome.fooled_by[name] = run.hits_N
        outcome.runs.append(
            AttackRun(
                name=name,
                num_attacked=run.num_attacked,
                num_fooled=int(run.hits_N.sum()),
                num_left=int(outcome.is_robust_N.sum()),
                num_refused=run.num_refused,
                is_complete=run.is_complete,
                seconds=time.perf_counter() - started,
            )
        )
    return outcome


@dataclass(frozen=True)
class _Target:
    """What is attacked."""

    network: Network
    searched: Network | None
    images_NCHW: Tensor
    labels_N: Tensor
    threat: Threat


class _Running:
    """What one attack has found so far."""

    def __init__(self, name: str, num_images: int, device: torch.device) -> None:
        self.name = name
        self.hits_N = torch.zeros(num_images, dtype=torch.bool, device=device)
        self.num_attacked = self.num_refused = 0
        self.is_complete = True


def _attack(target: _Target, run: _Running, outcome: Outcome, rows: Tensor, turn: Turn) -> None:
    """Attack the images in these rows, and keep of what comes what holds."""
    ball = Ball.around(target.images_NCHW[rows], target.threat)
    labels_B = target.labels_N[rows]
    points = ATTACKS[run.name](target.searched or target.network, ball, labels_B, turn)
    moved = (points != ball.centres).flatten(1).any(1)
    with torch.no_grad():
        holds = moved & ball.contains(points) & fooled(target.network(points), labels_B)
    if run.name == "fgsm":
        outcome.num_without_gradient += int((~moved).sum())
    else:
        # what FGSM gives need not fool; all others give only what did
        run.num_refused += int((moved & ~holds).sum())
    run.hits_N[rows[holds]] = True
    newly = holds & outcome.is_robust_N[rows]
    outcome.adversarial_NCHW[rows[newly]] = points[newly]
    outcome.is_robust_N[rows[newly]] = False
    run.num_attacked += len(rows)
    run.is_complete &= not turn.is_over()


def _left_to(outcome: Outcome, name: str) -> Tensor:
    """Which images an attack sees."""
    return outcome.is_correct_N if name in ON_ALL else outcome.is_robust_N


def _batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _generator(key: tuple[int, ...], device: torch.device) -> torch.Generator:
    (state,) = np.random.SeedSequence(list(key)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))
