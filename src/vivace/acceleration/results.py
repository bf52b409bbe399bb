"""What a search measured of each candidate, what became of it, and what the search found."""

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
from vivace.timing.interleaved import Timings
from vivace.timing.preprocessing import PreprocessTimings

__all__ = ["BUILT", "Outcome", "Result", "Results", "SearchResult", "Status", "Verdict", "remaining", "was_screened"]


class Status(StrEnum):
    """What became of a candidate."""

    BUILT = "built"
    """Still in the search."""
    BASELINE = "baseline"
    FAILED = "failed"
    """It could not be built, timed or compared."""
    OUT_OF_TIME = "out_of_time"
    """It was not started, or was abandoned, because the time budget ended."""
    SLOWER = "slower"
    """Another candidate with less risk, or of the same network, is faster."""
    INACCURATE = "inaccurate"
    """It loses too much accuracy on the selection images."""
    NOT_JUDGED = "not_judged"
    """A candidate before it in the sequence was not proven."""
    NOT_PROVEN = "not_proven"
    """The bound on its accuracy drop exceeds the budget."""
    CERTIFIED = "certified"
    """Its accuracy drop is proven to be within the budget."""


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate."""

    status: Status
    reason: str
    """In words, for people; programs compare `status`."""


BUILT = Outcome(Status.BUILT, "built")


class Verdict(StrEnum):
    """How a search ended."""

    ACCELERATED = "accelerated"
    NOTHING_FASTER = "nothing_faster"
    NOISY = "noisy"
    UNDECIDED = "undecided"

    @property
    def reason(self) -> str:
        """In words, for people."""
        return _REASONS[self]


_REASONS = {
    Verdict.ACCELERATED: "accelerated",
    Verdict.NOTHING_FASTER: "no candidate was both faster and within the accuracy budget",
    Verdict.NOISY: "too noisy to decide",
    Verdict.UNDECIDED: "nothing decided in the time given",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured of one candidate, and what became of it. Measurements that were not made are None."""

    candidate: Candidate
    outcome: Outcome = BUILT
    num_bytes: int = 0
    """Size of the files that its runtime reads; 0 if it was not built."""
    screened: Timings | None = None
    """The first, short timing."""
    timed: Timings | None = None
    """The final timing."""
    ratio: Ratio | None = None
    """Speed relative to the baseline, with a 95 % interval in the final timing and without one in the first."""
    selected: PairedLoss | None = None
    """Accuracy drop on the selection images."""
    certified: PairedLoss | None = None
    """Accuracy drop on the certification images."""
    parity: Parity | None = None
    """Agreement with its own network in PyTorch."""

    @property
    def status(self) -> Status:
        return self.outcome.status

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def times_faster(self) -> float:
        """Speed relative to the baseline; 0 if it was not timed."""
        return self.ratio[0] if self.ratio is not None and math.isfinite(self.ratio[0]) else 0.0

    @property
    def p50_ms(self) -> float:
        """Median time of a call; infinite if it was not timed."""
        timings = self.timed or self.screened
        return float("inf") if timings is None else timings.p50_ms

    def with_outcome(self, status: Status, reason: str) -> Result:
        """A copy with another outcome."""
        return dataclasses.replace(self, outcome=Outcome(status, reason))


class Results:
    """The newest result of each candidate, in the order in which candidates were first added."""

    def __init__(self) -> None:
        self._by_name: dict[str, Result] = {}

    def put(self, results: Iterable[Result]) -> list[Result]:
        """Store results in place of earlier ones of the same candidates, and return them."""
        taken = list(results)
        self._by_name |= {result.name: result for result in taken}
        return taken

    def discard(self, results: Iterable[Result]) -> None:
        """Remove the candidates of `results`."""
        for result in results:
            self._by_name.pop(result.name, None)

    def current(self, results: Iterable[Result]) -> list[Result]:
        """The newest results of the candidates of `results`."""
        return [self._by_name[result.name] for result in results]

    def __iter__(self) -> Iterator[Result]:
        return iter(list(self._by_name.values()))


def remaining(results: Iterable[Result]) -> list[Result]:
    """Those that are still in the search."""
    return [result for result in results if result.status is Status.BUILT]


def was_screened(results: Iterable[Result]) -> list[Result]:
    """Those that have a first timing."""
    return [result for result in results if result.screened is not None]


@dataclass(kw_only=True)
class SearchResult:
    """All results of a search, its winner, and what was measured beside them."""

    results: list[Result]
    missing: dict[str, str]
    """Variants that could not be tried, with the reason."""
    verdict: Verdict
    baseline: Result | None = None
    """The faster of PyTorch eager and compiled in float32; None if the time budget ended before it was timed."""
    winner: Result | None = None
    """None: no candidate was proven to be both faster and within the accuracy budget."""
    aa_test: Ratio | None = None
    """Ratio of the baseline to itself, timed like the others; None if there was no time for it."""
    splits: Splits | None = None
    num_certify: int = 0
    """Number of certification images that were used."""
    profile: Profile | None = None
    """Which kernels the winner ran, by its runtime's profiler; None if it can't be profiled."""
    preprocessing: PreprocessTimings | None = None
    """Reading, decoding and resizing a file, for the winner's network or the baseline's; None without files."""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """Why the result may be worth less than it seems."""
    left_out: list[str] = field(default_factory=list)
    """Work that was not started, or was abandoned, because the time budget ended."""
    seconds: float = 0.0
