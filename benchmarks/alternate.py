"""Programs timed interleaved, each in processes of its own: several fresh ones a side, one after the other.

A side is a program that speaks as peers/inference.py says. In every start each side gets a fresh process, since
two processes of the same program may differ by a few percent for as long as they live: their memory is laid out
differently. Within a start the sides run one block each, in an order that is reversed from round to round. While one
computes, the others wait on a pipe.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivace.hardware import available_memory_bytes
from vivace.statistics.intervals import Ratio, process_ratio
from vivace.timing.process import SideFailure, TimedProcess

__all__ = ["Contestant", "Measured", "alternate", "ratio_of"]

# long compared with the noise of a switch between processes, short compared with the drift of a machine
BLOCK_SECONDS = 0.25
MIN_CALLS = 3
# of calls that take longer than this, one makes a block
LONG_CALL_SECONDS = 0.5
# of all images to certify on, in PyTorch without compilation
CLASSIFY_SECONDS = 3600.0
# loading a network with batches of 32 photos takes about this much, and timings on a machine that swaps are useless
MIN_MEMORY_BYTES = 2 * 10**9


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """What is timed: a program, and the job that it gets as its first line."""

    name: str
    command: tuple[str, ...]
    job: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables added to those of this process."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Timings of one side: ms per call, which is a batch."""

    name: str
    starts_ms: tuple[tuple[tuple[float, ...], ...], ...]
    """Start → block → samples, in the order in which they were taken."""
    cold_start_seconds: tuple[float, ...]
    """For each start: seconds from process start to the first answer, measured from outside."""
    peak_memory_bytes: int
    """Resident, the largest of all starts."""

    @property
    def medians_ms(self) -> np.ndarray:
        """[starts, blocks]."""
        return np.array([[np.median(block) for block in blocks] for blocks in self.starts_ms])

    def percentile(self, percent: float) -> float:
        """p50, p90: `percent` in [0, 100], over all samples."""
        return float(
            np.percentile([value for blocks in self.starts_ms for block in blocks for value in block], percent)
        )


def ratio_of(baseline: Measured, candidate: Measured) -> Ratio:
    """(ratio, low, high): how many times as fast the candidate is, as `process_ratio` has it of medians of blocks.

    A start with an unlucky memory layout counts once, not once for each of its rounds.
    """
    starts = zip(baseline.medians_ms.tolist(), candidate.medians_ms.tolist(), strict=True)
    return process_ratio([list(zip(before, after, strict=True)) for before, after in starts])


def alternate(
    contestants: Sequence[Contestant],
    *,
    starts: int,
    rounds: int,
    block_seconds: float = BLOCK_SECONDS,
    classify: Mapping[str, Mapping[str, str]] | None = None,
    tell: Callable[[str], None] = lambda message: None,
) -> tuple[dict[str, Measured], dict[str, str]]:
    """(what was measured, why the others could not be), by name.

    classify: by name, what a side classifies after it was timed: {"split": …, "out": a file for the classes}.
    """
    failures: dict[str, str] = {}
    blocks: dict[str, list[tuple[tuple[float, ...], ...]]] = {one.name: [] for one in contestants}
    ready: dict[str, list[float]] = {one.name: [] for one in contestants}
    memory: dict[str, int] = dict.fromkeys(blocks, 0)
    for start in range(starts):
        children: list[_Child] = []
        try:
            for one in contestants if start % 2 == 0 else contestants[::-1]:
                if one.name in failures:
                    continue
                if 0 < available_memory_bytes() < MIN_MEMORY_BYTES:
                    failures[one.name] = (
                        f"not started: less than {MIN_MEMORY_BYTES / 1e9:.0f} GB of memory were left beside "
                        f"{len(children)} others. Time fewer variants at once: --variants"
                    )
                    continue
                children.append(_Child(one, block_seconds))
                with _noting(children, failures):
                    children[-1].warm_up()
            for number in range(rounds):
                for child in children[:] if number % 2 == 0 else children[::-1]:
                    with _noting(children, failures, child):
                        child.run_block()
            for child in children[:]:
                name = child.contestant.name
                with _noting(children, failures, child):
                    memory[name] = max(memory[name], child.ask({"do": "memory"})["peak_memory_bytes"])
                    if start == 0 and classify and name in classify:
                        tell(f"classifying with {name}")
                        child.ask({"do": "classify", **classify[name]})
                    blocks[name].append(tuple(child.blocks))
                    ready[name].append(child.cold_start_seconds)
        finally:
            for child in children:
                child.close()
        tell(f"start {start + 1}/{starts}: {len(children)} sides timed, {len(failures)} failed")
    measured = {
        name: Measured(
            name=name,
            starts_ms=tuple(blocks[name]),
            cold_start_seconds=tuple(ready[name]),
            peak_memory_bytes=memory[name],
        )
        for name in blocks
        if name not in failures
    }
    return measured, failures


@contextlib.contextmanager
def _noting(children: list[_Child], failures: dict[str, str], child: _Child | None = None) -> Any:
    """A side that fails is dropped, and the others continue."""
    child = child or children[-1]
    try:
        yield
    except SideFailure as error:
        failures[child.contestant.name] = str(error)
        children.remove(child)
        child.close()


class _Child:
    """A process that times one side: that of `vivace accelerate`, with a program of the benchmarks in it."""

    def __init__(self, contestant: Contestant, block_seconds: float) -> None:
        self.contestant = contestant
        self.blocks: list[tuple[float, ...]] = []
        self._num_calls = MIN_CALLS
        self._block_seconds = block_seconds
        self._began = time.perf_counter()
        self._process = TimedProcess(
            contestant, contestant.command, [dict(contestant.job)], block_seconds, contestant.environment
        )

    def warm_up(self) -> None:
        """Load it, and run until two blocks in a row take the same time; sets the number of calls in a block."""
        self._process.begin_load()
        self._process.answer()
        self.cold_start_seconds = time.perf_counter() - self._began
        once = float(np.median(self._process.times(MIN_CALLS)))
        least = MIN_CALLS if once < 1e3 * LONG_CALL_SECONDS else 1
        self._num_calls = self._process.warm_up(max(least, round(1e3 * self._block_seconds / max(once, 1e-3))))

    def run_block(self) -> None:
        # not counted: the first call finds the CPU's caches full of another side's data
        _, *times = self._process.times(self._num_calls + 1)
        self.blocks.append(tuple(times))

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return self._process.ask(message, timeout=CLASSIFY_SECONDS)

    def close(self) -> None:
        self._process.close()
