"""Latency of bundles, timed in separate processes and interleaved blocks, so that their ratios can be trusted.

Each side is timed in several fresh processes, one after another: two processes of the same program may differ by
percents for as long as they live, because their memory is placed differently. Between its blocks a process waits on a
pipe and uses no processor time. All sides get the same images and the same processors.
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
from vivace.timing.process import Job, Side, SideFailure, TimedProcess, process_of

__all__ = [
    "Side",
    "SideFailure",
    "Timings",
    "ratio_of",
    "time_sides",
]

# long compared with the cost of switching processes, short compared with the drift of a machine's speed
BLOCK_SECONDS = 0.25
# fraction of the time until a deadline for loading the first processes; the rest is for the blocks
LOAD_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class Timings:
    """The timings of one side. Times are in ms per call, of one batch."""

    name: str
    blocks_ms: tuple[tuple[float, ...], ...]
    """Raw samples, in the order in which they were taken; all blocks have the same number of calls."""
    cold_start_seconds: float
    """From the start of the first process to its first prediction, with empty compiler caches."""
    peak_memory_bytes: int | None
    """Peak resident memory of the largest process, including Python and libraries; None if the system does not say."""
    processes: tuple[int, ...] = ()
    """The process of each block, counted from 0; empty: all blocks are from one."""
    batch_size: int = 1
    """Images per call."""
    medians_ms: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "processes", self.processes or (0,) * len(self.blocks_ms))
        object.__setattr__(self, "medians_ms", tuple(float(np.median(block)) for block in self.blocks_ms))

    def percentile(self, share: float) -> float:
        """Percentile of all calls; `share` in [0, 100]."""
        return float(np.percentile([value for block in self.blocks_ms for value in block], share))

    @property
    def p50_ms(self) -> float:
        return self.percentile(50)

    @property
    def images_per_second(self) -> float:
        """Throughput of consecutive calls: the median over the blocks."""
        return float(np.median([1e3 * self.batch_size * len(block) / sum(block) for block in self.blocks_ms]))


def ratio_of(baseline: Timings, candidate: Timings) -> Ratio:
    """(ratio, low, high): how many times as fast the candidate is, with the 95 % interval of `process_ratio`.

    Computed from the medians of blocks, paired by round. With one process each, low and high are None.
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
    """Time all sides interleaved, `rounds` blocks each; the order is reversed from round to round.

    images_NHWC: uint8 at the bundles' size, used in batches; a mapping from the sides' names if their sizes differ.
    threads: processors that each side may use; None: all. processes: number of processes per side that share its
    rounds, one after another; an interval needs at least 3 to be useful, 5 are recommended. compiled: folder for
    compiled code, to reuse in later calls; without it code is shared only among the processes of this call.
    on_failure: called with a side that fails, which is then left out, and its error; without it SideFailure is raised.
    deadline: of time.monotonic(), when everything ends: complete rounds count, a side that was not loaded by then fails
    with OutOfTime, and the result is empty without a complete round.
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
                # later processes are only useful if all sides have one
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
    """A file for each array, by the same names; an array with two names is written once."""
    files: dict[int, Path] = {}
    for array in arrays.values():
        if id(array) not in files:
            files[id(array)] = folder / f"images{len(files)}.npy"
            np.save(files[id(array)], array)
    return {name: files[id(array)] for name, array in arrays.items()}


class _Record:
    """What was measured of a side so far, over all its processes."""

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
            # left incomplete by a process that was stopped: the next start would be neither cold nor warm
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def knows_cold_start(self) -> bool:
        return self._cold.is_file()

    @property
    def _cold(self) -> Path:
        return self._folder / "cold.json"

    def start(self) -> TimedProcess:
        # not the compiler's default folder: with what other runs left there, no start would be cold
        return process_of(self.side, self._images, self._job, {"TORCHINDUCTOR_CACHE_DIR": os.fspath(self._folder)})

    def started(self, seconds: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._cold, {"seconds": seconds})

    def warm_up(self, process: TimedProcess) -> None:
        # blocks have the same number of calls in all processes
        self._num_calls = process.warm_up(self._num_calls)

    @property
    def was_timed(self) -> bool:
        return bool(self._blocks)

    def take(self, process: TimedProcess, number: int, count: int) -> None:
        self._blocks += process.blocks[:count]
        self._processes += [number] * count

    def note_memory(self, process: TimedProcess) -> None:
        told = process.peak_memory_bytes()
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
    """One process of each side, all alive at the same time."""

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
        self._processes: dict[_Record, TimedProcess] = {}

    def load(self, *, backwards: bool, may_abandon: bool) -> None:
        """Start and warm up all of them.

        may_abandon: a side that is not loaded within LOAD_SHARE of the time is left out, and the others continue.
        Otherwise, and in all later methods, OutOfTime is raised at the deadline.
        """
        if may_abandon:
            self._may_abandon = True
            self._waits_until = time.monotonic() + LOAD_SHARE * (self._deadline - time.monotonic())
        self._load(backwards=backwards)
        self._may_abandon, self._waits_until = False, self._deadline
        self._each(lambda record, process: record.warm_up(process), backwards=backwards)
        # again at the end; this measurement exists even if the deadline comes first
        self.note_memory()

    def _load(self, *, backwards: bool) -> None:
        # a cold start is reported, so it has the machine to itself; the others start together
        for record in [record for record in self.records if not record.knows_cold_start]:
            # may be known by now, if another side has the same bundle and runtime
            if not record.knows_cold_start:
                self._attempt(record, self._begin)
                self._attempt(record, lambda record, process: record.started(process.end_load()))
        warm = [record for record in self.records if record not in self._processes][:: -1 if backwards else 1]
        for record in warm:
            self._attempt(record, self._begin)
        for record in warm:
            self._attempt(record, lambda record, process: process.end_load())

    def run_round(self, *, backwards: bool) -> None:
        self._each(lambda record, process: process.run_block(), backwards=backwards)

    def note_memory(self) -> None:
        self._each(lambda record, process: record.note_memory(process))

    def take_whole_rounds(self, number: int) -> None:
        """Keep the rounds in which every side has a block: all of them, or those before the deadline."""
        if all(record in self._processes for record in self.records):
            counts = [len(self._processes[record].blocks) for record in self.records]
            for record in self.records:
                record.take(self._processes[record], number, min(counts))

    def close(self) -> None:
        for process in self._processes.values():
            process.close()

    def _begin(self, record: _Record, process: TimedProcess) -> None:
        process.begin_load()

    def _each(self, do: Callable[[_Record, TimedProcess], object], *, backwards: bool = False) -> None:
        for record in self.records[:: -1 if backwards else 1]:
            self._attempt(record, do)

    def _attempt(self, record: _Record, do: Callable[[_Record, TimedProcess], object]) -> None:
        """Do something with a side's process; a side that fails is reported, and left out from now on."""
        if record not in self.records:
            return
        try:
            # the first side is what the others are compared with: nothing is worth measuring without it
            until = self._deadline if record is self._first else self._waits_until
            if time.monotonic() >= until:
                raise OutOfTime("not timed: out of time")
            if record not in self._processes:
                # stored before it is used, so that it is always closed
                self._processes[record] = record.start()
            self._processes[record].deadline = until
            do(record, self._processes[record])
        except OutOfTime as error:
            if not self._may_abandon:
                raise
            begun = record in self._processes
            self._leave_out(record, OutOfTime("abandoned: out of time while it was loaded") if begun else error)
        except SideFailure as error:
            if self._on_failure is None:
                raise
            self._leave_out(record, error)

    def _leave_out(self, record: _Record, error: SideFailure | OutOfTime) -> None:
        self.records.remove(record)
        if record in self._processes:
            self._processes.pop(record).close()
        if self._on_failure is not None:
            self._on_failure(record.side, error)
