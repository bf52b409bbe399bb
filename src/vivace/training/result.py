"""TrainResult: what a run gave (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vivace.config import to_dict

__all__ = ["TrainResult"]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run gave. Accuracies are fractions from 0 to 1."""

    bundle: Path
    run: Path
    val_top1: float
    test_top1: float | None
    """None without a test split."""
    epochs: float
    train_seconds: float
    """The loop: steps, validations and checkpoints."""
    total_seconds: float
    """Process start to saved bundle."""
    num_images_seen: int
    saved_epoch: float | None = None
    """The validation, by its epoch, at which the network had the weights of the bundle: the last one, or with early
    stopping the best."""
    target_reached: bool | None = None
    """None without a target."""
    target_seconds: float | None = None
    """Process start to the validation that reached the target."""
    within_seconds: float | None = None
    temperature: float | None = None
    """By which the logits that training ended with were divided in the bundle; None: they are as they were."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """What was left out, guessed or missed: each was shown on stderr when it was found."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return to_dict(self)
