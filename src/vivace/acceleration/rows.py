"""What a search knows of each form that it tried, and what it found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from vivace.acceleration.candidates import Candidate
from vivace.acceleration.splits import Splits
from vivace.exporting.parity import Parity
from vivace.profiling.profile import Profile
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss
from vivace.timing.preprocessing import PreprocessTimings
from vivace.timing.processes import Timings

__all__ = ["BUILT", "Outcome", "Row", "Rows", "SearchResult", "Status", "Verdict", "going_on"]


class Status(StrEnum):
    """What became of a candidate."""

    BUILT = "built"
    """Nothing speaks against it so far."""
    BASELINE = "baseline"
    FAILED = "failed"
    """It could not be built, timed or compared."""
    OUT_OF_TIME = "out_of_time"
    """It was not started, or it was abandoned, for want of time."""
    SLOWER = "slower"
    INACCURATE = "inaccurate"
    """It loses too much on the images to select on."""
    NOT_JUDGED = "not_judged"
    """Its turn to be certified did not come."""
    NOT_PROVEN = "not_proven"
    CERTIFIED = "certified"


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate, and why, as people read it."""

    status: Status
    reason: str


BUILT = Outcome(Status.BUILT, "built")


class Verdict(StrEnum):
    """What a search ends with; `reason` says it for people."""

    ACCELERATED = "accelerated"
    NOTHING_FASTER = "nothing_faster"
    NOISY = "noisy"
    UNDECIDED = "undecided"

    @property
    def reason(self) -> str:
        return _REASONS[self]


_REASONS = {
    Verdict.ACCELERATED: "accelerated",
    Verdict.NOTHING_FASTER: "no candidate was both faster and within the accuracy budget",
    Verdict.NOISY: "too noisy to decide",
    Verdict.UNDECIDED: "nothing decided in the time given",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one candidate, and what became of it."""

    candidate: Candidate
    outcome: Outcome = BUILT
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
    def status(self) -> Status:
        return self.outcome.status

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

    def became(self, status: Status, reason: str) -> Row:
        """The same candidate with another outcome."""
        return dataclasses.replace(self, outcome=Outcome(status, reason))


class Rows:
    """What is known of each candidate so far, in the order in which they were first tried."""

    def __init__(self) -> None:
        self._by_name: dict[str, Row] = {}

    def put(self, rows: Iterable[Row]) -> list[Row]:
        """Take rows in place of what was known of their candidates, and return them."""
        taken = list(rows)
        self._by_name |= {row.name: row for row in taken}
        return taken

    def forget(self, rows: Iterable[Row]) -> None:
        """Leave candidates out from now on."""
        for row in rows:
            self._by_name.pop(row.name, None)

    def now(self, rows: Iterable[Row]) -> list[Row]:
        """What is known by now of the candidates of rows."""
        return [self._by_name[row.name] for row in rows]

    def __iter__(self) -> Iterator[Row]:
        return iter(list(self._by_name.values()))


def going_on(rows: Iterable[Row]) -> list[Row]:
    """Those that nothing speaks against so far."""
    return [row for row in rows if row.status is Status.BUILT]


@dataclass(kw_only=True)
class SearchResult:
    """All rows, and which of them won."""

    rows: list[Row]
    missing: dict[str, str]
    """Forms that could not be tried, with the reason."""
    verdict: Verdict
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
