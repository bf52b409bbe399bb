"""What a search knows of each form that it tried, and what it found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vivace.acceleration.candidates import Candidate
from vivace.acceleration.splits import Splits
from vivace.exporting.parity import Parity
from vivace.profiling.profile import Profile
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss
from vivace.timing.preprocessing import PreprocessTimings
from vivace.timing.processes import Timings

__all__ = ["Row", "SearchResult"]


@dataclass(kw_only=True)
class Row:
    """What is known of one candidate."""

    candidate: Candidate
    status: str = "built"
    """Why it went no further, or "certified", "not proven"."""
    num_bytes: int = 0
    screened: Timings | None = None
    timed: Timings | None = None
    """The longer timing, of the forms that came so far."""
    ratio: Ratio | None = None
    """Times as fast as the baseline: in the longer timing with its 95 % interval, in the first one without any."""
    selected: PairedLoss | None = None
    """On the images to select on."""
    certified: PairedLoss | None = None
    parity: Parity | None = None

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def times_faster(self) -> float:
        """Than the baseline, which was timed beside it; 0 where it was not timed."""
        return self.ratio[0] if self.ratio is not None and math.isfinite(self.ratio[0]) else 0.0

    @property
    def p50_ms(self) -> float:
        timings = self.timed or self.screened
        return float("inf") if timings is None else timings.p50_ms


@dataclass(kw_only=True)
class SearchResult:
    """All rows, and which of them won."""

    rows: list[Row]
    missing: dict[str, str]
    """Forms that could not be tried, with the reason."""
    status: str
    """One of `decide.WON`, NOTHING, NOISY, UNDECIDED."""
    baseline: Row | None = None
    """The faster of PyTorch eager and compiled in float32; None where the time was over before it was timed."""
    winner: Row | None = None
    """None: nothing was proven to be within the budget and faster."""
    control: Ratio | None = None
    """The baseline against itself, timed as the others; None where there was no time for it."""
    splits: Splits | None = None
    num_certify: int = 0
    """Images that the finalists were judged on."""
    profile: Profile | None = None
    """Of the winner, by its runtime's own profiler: which kernels ran; None where it can't be had."""
    preprocessing: PreprocessTimings | None = None
    """Of the winner's network, or the baseline's: reading, decoding and resizing a file; None without files."""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What makes the result worth less than it seems."""
    left_out: list[str] = field(default_factory=list)
    """What was not started or was abandoned for want of time."""
    seconds: float = 0.0
