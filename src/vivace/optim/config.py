"""Optimizer and schedule: the parts of a recipe that `optim` reads (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vivace.config import check_choice, check_range
from vivace.errors import ConfigError

__all__ = ["OPTIMIZERS", "OptimizerConfig", "ScheduleConfig"]

# those that need no other library than torch
OPTIMIZERS = ("sgd", "adam", "adamw", "muon", "lamb")

# products of several rates must stay finite in float32: beyond that torch's optimizers fail
MAX_RATE = 1e12
SCHEDULES = ("constant", "cosine", "linear", "one_cycle", "step", "trapezoid")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer by name, and its hyperparameters."""

    name: str = "sgd"
    """sgd, adam, adamw, muon, lamb, or any optimizer that timm lists."""
    lr: float = 0.01
    """Peak learning rate of the main parameters, (0, 1e12]."""
    momentum: float = 0.9
    """Momentum of sgd and muon, [0, 1)."""
    nesterov: bool = False
    """Nesterov momentum, for sgd and muon; requires momentum > 0."""
    weight_decay: float = 0.0
    """Weight decay, [0, 1e12]; coupled (L2) for sgd and adam, decoupled for adamw, lamb and muon."""
    decay_norm_and_bias: bool = False
    """Apply weight decay to norms and biases too."""
    bias_lr_factor: float = 1.0
    """Learning rate of norm biases as a multiple of `lr` (64 in arXiv:2404.00498)."""
    aux_lr: float | None = None
    """With muon: learning rate of the parameters it does not treat (head, biases, norms). None: `lr` / 10."""
    layer_decay: float | None = None
    """Learning rate of a layer as a multiple of the next layer's, (0, 1]; for fine-tuning (arXiv:2003.10555)."""
    sam: float = 0.0
    """Sharpness-aware minimisation (arXiv:2010.01412): how far weights are moved along their gradient before the
    gradient of the step is taken, [0, 10]; 0.05 is usual. A step then costs twice as much. 0: off."""
    sam_adaptive: bool = False
    """Measure that distance relative to the size of each weight (ASAM, arXiv:2102.11600), where `sam` 0.5 is usual."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the optimizer, such as {"betas": [0.9, 0.95]}."""

    def __post_init__(self) -> None:
        check_range("optimizer.lr", self.lr, 0.0, MAX_RATE, open_low=True)
        check_range("optimizer.momentum", self.momentum, 0.0, 1.0, open_high=True)
        check_range("optimizer.weight_decay", self.weight_decay, 0.0, MAX_RATE)
        check_range("optimizer.bias_lr_factor", self.bias_lr_factor, 0.0, MAX_RATE, open_low=True)
        check_range("optimizer.aux_lr", self.aux_lr, 0.0, MAX_RATE, open_low=True)
        check_range("optimizer.layer_decay", self.layer_decay, 0.0, 1.0, open_low=True)
        check_range("optimizer.sam", self.sam, 0.0, 10.0)
        if self.sam_adaptive and not self.sam:
            raise ConfigError(
                "optimizer.sam_adaptive needs optimizer.sam: got sam 0. Set optimizer.sam=0.5, or sam_adaptive=false."
            )
        if self.nesterov and self.momentum == 0:
            raise ConfigError(
                "optimizer.nesterov needs a momentum: got nesterov true and momentum 0. "
                "Set optimizer.momentum, or optimizer.nesterov=false."
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over a run, as a multiple of its peak."""

    name: Literal["constant", "cosine", "linear", "one_cycle", "step", "trapezoid"] = "constant"
    """constant, cosine, linear, one_cycle, step or trapezoid (warm-up, constant, decay)."""
    warmup: float = 0.0
    """Fraction of the run for the warm-up from `start` to 1, [0, 1)."""
    cooldown: float = 0.3
    """trapezoid: fraction of the run for the decay from 1 to `end`, [0, 1]."""
    start: float = 0.0
    """Multiplier at the start of the warm-up, [0, 1]."""
    end: float = 0.0
    """cosine, linear, one_cycle, trapezoid: multiplier at the end of the run, [0, 1]."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """step: fractions of the run after the warm-up, at which the rate is multiplied by `gamma`."""
    gamma: float = 0.1
    """step: the factor, (0, 1]."""

    def __post_init__(self) -> None:
        check_choice("schedule.name", self.name, SCHEDULES)
        check_range("schedule.warmup", self.warmup, 0.0, 1.0, open_high=True)
        check_range("schedule.cooldown", self.cooldown, 0.0, 1.0)
        check_range("schedule.start", self.start, 0.0, 1.0)
        check_range("schedule.end", self.end, 0.0, 1.0)
        check_range("schedule.gamma", self.gamma, 0.0, 1.0, open_low=True)
        for milestone in self.milestones:
            check_range("schedule.milestones", milestone, 0.0, 1.0)
        if self.name == "trapezoid" and self.warmup + self.cooldown > 1.0 + 1e-9:
            raise ConfigError(
                f"schedule.warmup and schedule.cooldown overlap: got {self.warmup:g} + {self.cooldown:g}. "
                "Give fractions whose sum is at most 1."
            )
