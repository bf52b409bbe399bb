"""Latency of bundles, in fresh processes of their own and in alternating blocks, so that a ratio can be believed.

A side is timed in several processes, one after another: two processes of the very same form may differ by hundredths
for as long as they live, for their memory lies elsewhere. Between its blocks a process waits on a pipe and takes no
processor time. All sides see the same images with the same processors.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vivace.config import check_range
from vivace.errors import ConfigError, OutOfTime
from vivace.files import canonical_json, write_json
from vivace.scratch import scratch_folder
from vivace.statistics.intervals import Ratio, process_ratio
from vivace.timing.children import Child, Job, Side, SideFailure

__all__ = [
    "Side",
    "SideFailure",
    "Timings",
    "ratio_of",
    "time_sides",
]

# a block is long against the noise of a switch between processes, short against the drift of a machine
BLOCK_SECONDS = 0.25
# of the time until a deadline so much is for loading the first processes; the rest is for the blocks
LOAD_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What timing one side gave. Times are of one call, a batch, in ms."""

    name: str
    blocks_ms: tuple[tuple[float, ...], ...]
    """Raw samples, in the order in which they were taken; each block is of as many calls."""
    cold_start_seconds: float
    """From the start of the first process to its first answer, with nothing compiled before."""
    peak_memory_bytes: int | None
    """Resident, of the largest process, Python and libraries included; None if the system does not tell."""
    processes: tuple[int, ...] = ()
    """Which process each block is of, counted from 0; empty: all are of one."""
    batch_size: int = 1
    """Images in a call."""
    medians_ms: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "processes", self.processes or (0,) * len(self.blocks_ms))
        object.__setattr__(self, "medians_ms", tuple(float(np.median(block)) for block in self.blocks_ms))

    def percentile(self, share: float) -> float:
        """p50, p90, p99: `share` in [0, 100]."""
        return float(np.percentile([value for block in self.blocks_ms for value in block], share))

    @property
    def p50_ms(self) -> float:
        return self.percentile(50)

    @property
    def images_per_second(self) -> float:
        """Throughput with one call after another: images by the time that they took, the median of all blocks."""
        return float(np.median([1e3 * self.batch_size * len(block) / sum(block) for block in self.blocks_ms]))


def ratio_of(baseline: Timings, candidate: Timings) -> Ratio:
    """(ratio, low, high): how many times as fast the candidate is, with its 95 % interval as `process_ratio` has it.

    Of the medians of blocks, paired by round. Of one process each there is no interval: low and high are None.
    """
    if baseline.processes != candidate.processes:
        raise ValueError("sides that were not timed together have no ratio")
    pairs: dict[int, list[tuple[float, float]]] = {}
    for process, before, after in zip(baseline.processes, baseline.medians_ms, candidate.medians_ms, strict=True):
        pairs.setdefault(process, []).append((before, after))
    return process_ratio(list(pairs.values()))


def time_sides(
    sides: Sequence[Side],
    images_NHWC: np.ndarray | Mapping[str, np.ndarray],
    *,
    batch_size: int = 1,
    threads: int | None = None,
    rounds: int = 15,
    processes: int = 1,
    block_seconds: float = BLOCK_SECONDS,
    compiled: Path | None = None,
    on_failure: Callable[[Side, SideFailure | OutOfTime], None] | None = None,
    deadline: float | None = None,
) -> list[Timings]:
    """Time all sides in alternation, `rounds` blocks each; the order turns round from round to round.

    images_NHWC: uint8 at the bundles' size, gone through in batches; where sizes differ, those of each side by its
    name. threads: processors that each side may use; None: all. processes: so many of each side share its rounds, one
    after another; from 3 on an interval is of use, 5 are advised. compiled: folder for what a compiler makes, to be
    kept for a next call; without it that is only shared among the processes of this one. on_failure: called with a side
    that fails, which is then left out, and its error; without it SideFailure is raised. deadline: of time.monotonic,
    when all ends: whole rounds count, a side that was not loaded by then fails with OutOfTime, and the result is empty
    where there is no whole round.
    """
    check_range("processes", processes, 1, rounds)
    arrays = images_NHWC if isinstance(images_NHWC, Mapping) else {side.name: images_NHWC for side in sides}
    for array in arrays.values():
        if len(array) < batch_size:
            raise ConfigError(f"too few images to time: got {len(array)} for batches of {batch_size}.")

    with scratch_folder("timing") as folder:
        files = _saved({side.name: arrays[side.name] for side in sides}, Path(folder))
        job = Job(batch_size=batch_size, threads=threads, block_seconds=block_seconds)
        records = [_Record(side, files[side.name], job, compiled or Path(folder)) for side in sides]
        for process in range(processes):
            generation = _Generation(records, on_failure, float("inf") if deadline is None else deadline)
            try:
                # later processes are only worth it where all sides have one
                generation.load(backwards=process % 2 == 1, may_abandon=process == 0)
                for number in range(rounds // processes + (process < rounds % processes)):
                    generation.run_round(backwards=(process + number) % 2 == 1)
                generation.note_memory()
            except OutOfTime:
                break
            finally:
                generation.take_whole_rounds(process)
                generation.close()
                records = generation.records
        return [record.timings() for record in records if record.was_timed]


def _saved(arrays: Mapping[str, np.ndarray], folder: Path) -> dict[str, Path]:
    """A file for each array, by the same names; an array that two names have is written once."""
    files: dict[int, Path] = {}
    for array in arrays.values():
        if id(array) not in files:
            files[id(array)] = folder / f"images{len(files)}.npy"
            np.save(files[id(array)], array)
    return {name: files[id(array)] for name, array in arrays.items()}


class _Record:
    """What is known of a side so far."""

    def __init__(self, side: Side, images: Path, job: Job, compiled: Path) -> None:
        self.side, self._images, self._job = side, images, job
        self._blocks: list[tuple[float, ...]] = []
        self._processes: list[int] = []
        self._peak_memory_bytes: int | None = None
        self._num_calls: int | None = None
        manifest = side.bundle / "bundle.json"
        content = manifest.read_bytes() if manifest.is_file() else os.fsencode(side.bundle)
        form = canonical_json([side.runtime, side.precision, job.batch_size, job.threads])
        self._folder = compiled / hashlib.sha256(content + form).hexdigest()[:16]
        if not self.knows_cold_start:
            # half filled by a process that was stopped: the next start would be neither cold nor warm
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def knows_cold_start(self) -> bool:
        return self._cold.is_file()

    @property
    def _cold(self) -> Path:
        return self._folder / "cold.json"

    def child(self) -> Child:
        # a compiler's usual folder holds what other runs have left there: no start would be cold
        return Child(self.side, self._images, self._job, {"TORCHINDUCTOR_CACHE_DIR": os.fspath(self._folder)})

    def started(self, seconds: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._cold, {"seconds": seconds})

    def warm_up(self, child: Child) -> None:
        # blocks of all processes are of as many calls
        self._num_calls = child.warm_up(self._num_calls)

    @property
    def was_timed(self) -> bool:
        return bool(self._blocks)

    def take(self, child: Child, process: int, count: int) -> None:
        self._blocks += child.blocks[:count]
        self._processes += [process] * count

    def note_memory(self, child: Child) -> None:
        told = child.peak_memory_bytes()
        if told is not None:
            self._peak_memory_bytes = max(self._peak_memory_bytes or 0, told)

    def timings(self) -> Timings:
        return Timings(
            name=self.side.name,
            blocks_ms=tuple(self._blocks),
            processes=tuple(self._processes),
            cold_start_seconds=json.loads(self._cold.read_bytes())["seconds"],
            peak_memory_bytes=self._peak_memory_bytes,
            batch_size=self._job.batch_size,
        )


class _Generation:
    """One process of each side, all alive together."""

    def __init__(
        self,
        records: Sequence[_Record],
        on_failure: Callable[[Side, SideFailure | OutOfTime], None] | None,
        deadline: float,
    ) -> None:
        self.records = list(records)
        self._first = self.records[0] if self.records else None
        self._on_failure = on_failure
        self._deadline = deadline
        self._waits_until = deadline
        self._may_abandon = False
        self._children: dict[_Record, Child] = {}

    def load(self, *, backwards: bool, may_abandon: bool) -> None:
        """Start all. may_abandon: one that is not there when its share of the time is over is left out, and the others
        go on; otherwise, and for all that follows, OutOfTime is raised at the deadline."""
        if may_abandon:
            self._may_abandon = True
            self._waits_until = time.monotonic() + LOAD_SHARE * (self._deadline - time.monotonic())
        self._load(backwards=backwards)
        self._may_abandon, self._waits_until = False, self._deadline
        self._each(lambda record, child: record.warm_up(child), backwards=backwards)
        # once more at the end; this one is there after a deadline too
        self.note_memory()

    def _load(self, *, backwards: bool) -> None:
        # one that starts cold has the machine to itself, for its seconds are told; the others start together
        for record in [record for record in self.records if not record.knows_cold_start]:
            # known by now, where another side is of the same form
            if not record.knows_cold_start:
                self._attempt(record, self._begin)
                self._attempt(record, lambda record, child: record.started(child.end_load()))
        warm = [record for record in self.records if record not in self._children][:: -1 if backwards else 1]
        for record in warm:
            self._attempt(record, self._begin)
        for record in warm:
            self._attempt(record, lambda record, child: child.end_load())

    def run_round(self, *, backwards: bool) -> None:
        self._each(lambda record, child: child.run_block(), backwards=backwards)

    def note_memory(self) -> None:
        self._each(lambda record, child: record.note_memory(child))

    def take_whole_rounds(self, process: int) -> None:
        """The rounds in which every side has a block: all of them, or those before the deadline."""
        if all(record in self._children for record in self.records):
            counts = [len(self._children[record].blocks) for record in self.records]
            for record in self.records:
                record.take(self._children[record], process, min(counts))

    def close(self) -> None:
        for child in self._children.values():
            child.close()

    def _begin(self, record: _Record, child: Child) -> None:
        child.begin_load()

    def _each(self, do: Callable[[_Record, Child], object], *, backwards: bool = False) -> None:
        for record in self.records[:: -1 if backwards else 1]:
            self._attempt(record, do)

    def _attempt(self, record: _Record, do: Callable[[_Record, Child], object]) -> None:
        """Do something with a side's process; a side that fails is told of and left out from now on."""
        if record not in self.records:
            return
        try:
            # without the first one, which the others are compared with, they are worth nothing
            until = self._deadline if record is self._first else self._waits_until
            if time.monotonic() >= until:
                raise OutOfTime("not timed: out of time")
            if record not in self._children:
                # counted before it is asked, so that it ends whatever happens
                self._children[record] = record.child()
            self._children[record].deadline = until
            do(record, self._children[record])
        except OutOfTime as error:
            if not self._may_abandon:
                raise
            begun = record in self._children
            self._leave_out(record, OutOfTime("abandoned: out of time while it was loaded") if begun else error)
        except SideFailure as error:
            if self._on_failure is None:
                raise
            self._leave_out(record, error)

    def _leave_out(self, record: _Record, error: SideFailure | OutOfTime) -> None:
        self.records.remove(record)
        if record in self._children:
            self._children.pop(record).close()
        if self._on_failure is not None:
            self._on_failure(record.side, error)
