"""What a search for a faster module found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vivace.acceleration.modules.saving import Saveable, save_module
from vivace.data.preprocess import Preprocess
from vivace.errors import ExportError

__all__ = ["CandidateResult", "ModuleAcceleration"]


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """What became of one candidate."""

    name: str
    """Its runtime and precision."""
    reason: str
    """What became of it, in one line."""
    speedup: float | None = None
    """Relative to the baseline; None if it was not timed."""
    drop: float | None = None
    """Of the mean score on the samples to choose on, percentage points; None if it was not scored."""


@dataclass(frozen=True, kw_only=True)
class ModuleAcceleration:
    """The result of a search for a faster module. Scores are in [0, 1], drops in percentage points, times in ms."""

    module: nn.Module = field(repr=False)
    """The drop-in replacement, an `AcceleratedModule`; the module that was given if no faster one was found."""
    accelerated: bool
    status: str
    """ "accelerated"; "nothing_faster": no candidate was both faster and within the budget; "noisy": the timing was too
    noisy to decide; "undecided": the time budget ended before anything was decided; "unsupported": no other program
    can replace such a module."""
    reason: str
    """The status in words, for people, with what became of each candidate where none won."""
    warnings: list[str]
    """What was left out, guessed or replaced, and why the result may be worth less than it seems."""
    runtime: str
    precision: str
    network: str
    """Name of the smaller network that was trained to replace the module; empty: the module's own."""
    metric: str
    """Name of the metric."""
    latency_ms_before: float
    """Of a call with the example, for the baseline: the faster of the module as it is and compiled by torch.compile,
    in float32. NaN if it was not timed."""
    latency_ms_after: float
    speedup: float
    """Relative to the baseline; 1 for the module that was given."""
    speedup_low: float
    """Lower bound of Student's 95 % interval over rounds in this process; NaN without one."""
    score_before: float
    """Mean score of the module on the samples that prove it; NaN, as `score_after`, without a proof."""
    score_after: float
    drop: float
    """score_before - score_after, percentage points; 0, as `drop_bound`, where the module came back as it was."""
    drop_bound: float
    """One-sided upper bound on `drop` with 95 % confidence."""
    num_certify_samples: int
    """Samples that the proof rests on; none of them was used to choose."""
    candidates: list[CandidateResult] = field(repr=False)
    seconds: float
    """What it took."""
    _saveable: Saveable | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the module, as plain values for JSON."""
        names = [one.name for one in dataclasses.fields(self) if one.name not in ("module", "_saveable")]
        values = {name: getattr(self, name) for name in names}
        return {**values, "candidates": [dataclasses.asdict(candidate) for candidate in self.candidates]}

    def save(
        self,
        folder: str | Path,
        *,
        classes: Sequence[str] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        preprocess: Preprocess | None = None,
        multi_label: bool | None = None,
    ) -> Path:
        """Write a bundle that answers as `module` does, and needs none of its code; returns the folder.

        For modules that classify images: one float input [B, C, H, W] of one square size, logits [B, K] out, or an
        object that has them as `logits`. classes: names of the K classes; None: "0" to "K-1". mean, std: what the data
        were normalised with, on the 0..1 scale, a number or one for each channel; image files are then cut to their
        central square and resized. preprocess: in place of these, all that happens to an image file. multi_label:
        whether an image has a set of labels; to be given where the targets are 0 or 1 for each class.
        A program that takes the module's code is replaced by its float32 graph for ONNX Runtime, with a warning.
        Raises ConfigError where these are missing or do not fit the data, ExportError for other modules and those that
        can't be exported, ModelError for outputs that are probabilities, ParityError if the bundle answers otherwise,
        OutputPathError if `folder` holds what vivace did not write, MissingExtra.
        """
        if self._saveable is None:
            raise ExportError(f"a module whose status is {self.status} can't be saved as a bundle: {self.reason}.")
        return save_module(
            self._saveable,
            self.to_dict(),
            Path(folder),
            classes=classes,
            mean=mean,
            std=std,
            preprocess=preprocess,
            multi_label=multi_label,
        )
