"""TrainResult: the outcome of a run (no torch here)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vivace.config import from_dict, to_dict

__all__ = ["Robust", "TrainResult"]


@dataclass(frozen=True, kw_only=True)
class Robust:
    """What adversarial training came to, by its own probe: an upper bound of the robustness.

    `vivace.evaluate(..., attack="linf:8/255")` measures it by stronger attacks.
    """

    accuracy: float
    """Fraction of held-out images that PGD left right, of the weights in the bundle."""
    num_right: int
    num_images: int
    threat: str
    """Such as linf:8/255."""
    steps: int
    """Of that PGD."""
    num_overfits: int
    """How often the run went back after catastrophic overfitting."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The outcome of a run. Accuracies are fractions from 0 to 1."""

    bundle: Path
    run: Path
    val_top1: float
    """NaN where images have sets of labels: see `val_map`."""
    test_top1: float | None
    """None without a test split."""
    epochs: float
    train_seconds: float
    """Of the training loop: steps, validations and checkpoints."""
    total_seconds: float
    """From process start to saved bundle."""
    num_images_seen: int
    saved_epoch: float | None = None
    """The epoch whose validated weights are in the bundle: the last one, or with early stopping the best one."""
    stopped_early: str | None = None
    """Why early stopping ended the run; None: it did not."""
    target_reached: bool | None = None
    """Whether the saved bundle reaches the target; None without one."""
    target_seconds: float | None = None
    """From process start to the validation that reached the target."""
    within_seconds: float | None = None
    temperature: float | None = None
    """By which the bundle divides the logits, for calibrated probabilities; None: not calibrated."""
    epsilon: float | None = None
    """Of a private run: what was spent, at most what was asked for. None: training was not private."""
    delta: float | None = None
    """The probability with which that may not hold."""
    no_graph: str | None = None
    """Why the bundle of a network of your own got no graph that runs without its code; None: it has one, or the network
    is ours or timm's."""
    val_map: float | None = None
    """Mean average precision over the labels; None where images have one class."""
    test_map: float | None = None
    robust: Robust | None = None
    """None: the run was not adversarial."""
    report: Path | None = None
    """The report of the run, an HTML file; None: it was not written, as Jinja2 is not installed or a warning says."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """What was left out, guessed or missed; each was shown on stderr when it occurred."""

    @classmethod
    def read(cls, values: Mapping[str, Any], *, run: Path) -> TrainResult:
        """The result of the run in this folder from its result.json; paths are those of the folder as it is now.

        Raises ValueError or TypeError for values that no run has written.
        """
        report = run / "report.html"
        known = {name: values[name] for name in (each.name for each in dataclasses.fields(cls)) if name in values}
        known |= {"bundle": run / "bundle", "run": run, "report": report if report.is_file() else None}
        known |= {"warnings": tuple(map(str, values.get("warnings", ())))}
        known["robust"] = None if known.get("robust") is None else from_dict(Robust, known["robust"])
        result = cls(**{"val_top1": math.nan, "test_top1": None} | known)
        for name in ("epochs", "train_seconds", "total_seconds", "num_images_seen", "val_top1"):
            if not isinstance(getattr(result, name), int | float):
                raise ValueError(f"{name} is no number")
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: the accuracies, or with sets of labels the mAP in their place."""
        values = to_dict(self)
        other: tuple[str, ...] = ("val_map", "test_map") if self.val_map is None else ("val_top1", "test_top1")
        other += () if self.robust else ("robust",)
        return {name: value for name, value in values.items() if name not in other}
