"""Programs timed in alternation, each in processes of its own: several fresh ones a side, one after the other.

A side is a program that speaks as peers/inference.py says. In every start each side gets a fresh process, for two
processes of one program may differ for good by some hundredths: memory lies elsewhere. Within a start the sides take
turns, block by block, and the order turns round from round to round. While one computes, the others wait on a pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivace.hardware import available_memory_bytes
from vivace.statistics.intervals import Ratio, process_ratio

__all__ = ["Contestant", "Measured", "SideFailed", "alternate", "ratio_of"]

# a block is long against the noise of a switch between processes, short against the drift of a machine
BLOCK_SECONDS = 0.25
MIN_CALLS = 3
# of calls that are longer than this, one is a block
LONG_CALL_SECONDS = 0.5
# warm once two blocks in a row differ by less than this
STABLE_WITHIN = 0.05
MAX_WARMUP_BLOCKS = 12
# a network of batches of 32 photos takes about so much while it is loaded: a machine that swaps times nothing
MIN_MEMORY_BYTES = 2 * 10**9


class SideFailed(RuntimeError):
    """A side could not be loaded, or died."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """What is timed: a program, and the job that it is told in its first line."""

    name: str
    command: tuple[str, ...]
    job: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those of this process."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What timing one side gave. Times are of one call, a batch, in ms."""

    name: str
    starts_ms: tuple[tuple[tuple[float, ...], ...], ...]
    """Start → block → samples, in the order in which they were taken."""
    cold_start_seconds: tuple[float, ...]
    """Of each start: from the start of the process to the first answer, as seen from outside."""
    peak_memory_bytes: int
    """Resident, the largest of all starts."""

    @property
    def medians_ms(self) -> np.ndarray:
        """[starts, blocks]."""
        return np.array([[np.median(block) for block in blocks] for blocks in self.starts_ms])

    def percentile(self, share: float) -> float:
        """p50, p90: `share` in [0, 100], of all samples."""
        return float(np.percentile([value for blocks in self.starts_ms for block in blocks for value in block], share))


def ratio_of(baseline: Measured, candidate: Measured) -> Ratio:
    """(ratio, low, high): how many times as fast the candidate is, as `process_ratio` has it of medians of blocks.

    A start in which memory lay badly counts once, not as many times as it had rounds.
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

    classify: for names, what they are to classify once they were timed: {"split": …, "out": a file for the classes}.
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
                        f"{len(children)} others. Time fewer forms at once: --forms"
                    )
                    continue
                children.append(_Child(one))
                with _noting(children, failures):
                    children[-1].warm_up(block_seconds)
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
    """A side that fails is left out from here on, and the others go on."""
    child = child or children[-1]
    try:
        yield
    except SideFailed as error:
        failures[child.contestant.name] = str(error)
        children.remove(child)
        child.close()


class _Child:
    """A process that times one side."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.blocks: list[tuple[float, ...]] = []
        self._num_calls = MIN_CALLS
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            contestant.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | dict(contestant.environment),
        )

    def warm_up(self, block_seconds: float) -> None:
        """Until two blocks in a row take the same time; sets how many calls a block has."""
        self._say(self.contestant.job)
        self.ask({"do": "load"})
        self.cold_start_seconds = time.perf_counter() - self._began
        once = float(np.median(self._times(MIN_CALLS)))
        least = MIN_CALLS if once < 1e3 * LONG_CALL_SECONDS else 1
        self._num_calls = max(least, round(1e3 * block_seconds / max(once, 1e-3)))
        before = once
        for _ in range(MAX_WARMUP_BLOCKS):
            now = float(np.median(self._times(self._num_calls)))
            if abs(now - before) <= STABLE_WITHIN * before:
                return
            before = now

    def run_block(self) -> None:
        # the first call finds the caches full of what the side before it left there
        _, *times = self._times(self._num_calls + 1)
        self.blocks.append(tuple(times))

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdout is not None
        self._say(message)
        line = self._process.stdout.readline()
        if not line:
            raise SideFailed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideFailed(answer["error"])
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._log.close()

    def _times(self, num_calls: int) -> list[float]:
        times: list[float] = self.ask({"do": "time", "calls": num_calls})["times_ms"]
        return times

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SideFailed(self._last_words()) from None

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return f"its process ended with status {status}: {lines[-1] if lines else 'without a word'}"
