"""The result of a measured trial: each candidate against the best so far, and the fastest configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vivace.training.execution import ExecutionConfig, summary_of

__all__ = ["Receipt", "Trial"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate against the best so far, timed interleaved."""

    name: str
    ratio: float
    """Time of the best so far over time of the candidate: above 1, the candidate is faster."""
    ratio_low: float
    ratio_high: float
    num_pairs: int
    kept: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The candidates, their results, and the fastest configuration."""

    execution: ExecutionConfig
    trials: tuple[Trial, ...] = ()
    seconds: float = 0.0
    """Duration of the trial."""
    source: Literal["measured", "cached", "off", "skipped"] = "measured"
    cut_off: bool = False
    """Whether the trial ran out of time; what was decided before that counts."""

    def summary(self) -> str:
        """One line for people."""
        gain = 1.0
        if self.source == "off":
            return f"{', '.join(summary_of(self.execution))} (not measured)"
        for trial in self.trials:
            gain *= trial.ratio if trial.kept else 1.0
        how = f"{gain:.2f} × plain fp32 eager" if self.trials else "not measured"
        cut = ", cut off: it may take a fifth of the run" if self.cut_off else ""
        return f"{', '.join(summary_of(self.execution))} ({how}; {self.source}, {self.seconds:.1f} s{cut})"
