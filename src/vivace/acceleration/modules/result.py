"""What a search for a faster module found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

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

    module: nn.Module
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
    """Mean score of the module on the samples that prove it; NaN, as all scores and drops, without a proof."""
    score_after: float
    drop: float
    """score_before - score_after, percentage points."""
    drop_bound: float
    """One-sided upper bound on `drop` with 95 % confidence."""
    num_certify_samples: int
    """Samples that the proof rests on; none of them was used to choose."""
    candidates: list[CandidateResult]
    seconds: float
    """What it took."""

    def to_dict(self) -> dict[str, Any]:
        """All but the module, as plain values for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "module"}
        return {**values, "candidates": [dataclasses.asdict(candidate) for candidate in self.candidates]}
