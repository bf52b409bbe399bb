"""Latency of bundles, each in a fresh process of its own, in alternating blocks, so that a ratio can be believed.

A side is a child that loads a bundle, says when it is ready, and then classifies when it is told to. Between its blocks
it waits on a pipe and takes no processor time. All sides see the same images with the same processors.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vivace.errors import ConfigError, VivaceError
from vivace.measure import bootstrap_ratio

__all__ = ["Side", "SideFailure", "Timings", "ratio_of", "time_sides"]

# a block is long against the noise of a switch between processes, short against the drift of a machine
BLOCK_SECONDS = 0.25
MIN_CALLS = 3
# warm once two blocks in a row differ by less than this
STABLE_WITHIN = 0.05
MAX_WARMUP_BLOCKS = 12
CHILD = (
    "import json, sys; sys.path.extend(p for p in json.loads(sys.stdin.readline()) if p not in sys.path); "
    "from vivace.acceleration.timed import serve; serve()"
)


class SideFailure(VivaceError):
    """A side could not be loaded, or died."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is timed: a bundle's folder on a runtime in a precision."""

    name: str
    bundle: Path
    runtime: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What timing one side gave. Times are of one call, a batch, in ms."""

    name: str
    blocks_ms: tuple[tuple[float, ...], ...]
    """Raw samples, in the order in which they were taken."""
    cold_start_seconds: float
    """From the start of the process to the first answer; a compiler's work counts."""
    peak_memory_bytes: int
    """Resident, Python and libraries included."""
    medians_ms: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "medians_ms", tuple(float(np.median(block)) for block in self.blocks_ms))

    def percentile(self, share: float) -> float:
        """p50, p90, p99: `share` in [0, 100]."""
        return float(np.percentile([value for block in self.blocks_ms for value in block], share))

    @property
    def p50_ms(self) -> float:
        return self.percentile(50)


def ratio_of(baseline: Timings, candidate: Timings, *, seed: int = 0) -> tuple[float, float, float]:
    """(ratio, low, high): how many times as fast the candidate is, with its 95 % bootstrap interval.

    Of the medians of blocks, paired by round: what slowed a whole round cancels, and samples within a block, which are
    not independent, count as one.
    """
    return bootstrap_ratio(baseline.medians_ms, candidate.medians_ms, seed=seed)


def time_sides(
    sides: Sequence[Side],
    images_NHWC: np.ndarray | Mapping[str, np.ndarray],
    *,
    batch_size: int = 1,
    threads: int | None = None,
    rounds: int = 15,
    block_seconds: float = BLOCK_SECONDS,
    on_failure: Callable[[Side, str], None] | None = None,
    deadline: float | None = None,
) -> list[Timings]:
    """Time all sides in alternation, `rounds` blocks each; the order turns round from round to round.

    images_NHWC: uint8 at the bundles' size, gone through in batches; where sizes differ, those of each side by its
    name. threads: processors that each side may use; None:
    all. on_failure: told of a side that fails, which is then left out; without it SideFailure is raised. deadline: of
    time.monotonic, after which no further round begins, once there are five.
    """
    arrays = images_NHWC if isinstance(images_NHWC, Mapping) else {side.name: images_NHWC for side in sides}
    for array in arrays.values():
        if len(array) < batch_size:
            raise ConfigError(f"too few images to time: got {len(array)} for batches of {batch_size}.")
    with tempfile.TemporaryDirectory(prefix="vivace-timing-") as folder:
        files = _saved({side.name: arrays[side.name] for side in sides}, Path(folder))
        children: list[_Child] = []
        try:
            for side in sides:
                child = _Child(side, files[side.name], batch_size, threads)
                # counted before it is asked, so that it ends whatever happens
                children.append(child)
                try:
                    child.warm_up(block_seconds)
                except SideFailure as error:
                    children.pop().close()
                    if on_failure is None:
                        raise
                    on_failure(side, str(error))
            for number in range(rounds):
                if deadline is not None and number >= 5 and time.monotonic() > deadline:
                    break
                for child in children if number % 2 == 0 else children[::-1]:
                    child.run_block()
            return [child.timings() for child in children]
        finally:
            for child in children:
                child.close()


def _saved(arrays: Mapping[str, np.ndarray], folder: Path) -> dict[str, Path]:
    """A file for each array, by the same names; an array that two names have is written once."""
    files: dict[int, Path] = {}
    for array in arrays.values():
        if id(array) not in files:
            files[id(array)] = folder / f"images{len(files)}.npy"
            np.save(files[id(array)], array)
    return {name: files[id(array)] for name, array in arrays.items()}


class _Child:
    """A process that times one side."""

    def __init__(self, side: Side, images: Path, batch_size: int, threads: int | None) -> None:
        self.side = side
        self.blocks: list[tuple[float, ...]] = []
        self._num_calls = MIN_CALLS
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # Ctrl-C in a terminal reaches a whole group: the parent ends its children itself
            process_group=0,
        )
        job = {
            "bundle": os.fspath(side.bundle),
            "runtime": side.runtime,
            "precision": side.precision,
            "images": os.fspath(images),
            "batch_size": batch_size,
            "threads": threads,
        }
        self._say([str(folder) for folder in sys.path])
        self._say(job)

    def warm_up(self, block_seconds: float) -> None:
        """Until two blocks in a row take the same time; sets how many calls a block has."""
        self._ready = self._ask({"do": "load"})
        once = float(np.median(self._times(MIN_CALLS)))
        self._num_calls = max(MIN_CALLS, round(1e3 * block_seconds / max(once, 1e-3)))
        before = once
        for _ in range(MAX_WARMUP_BLOCKS):
            now = float(np.median(self._times(self._num_calls)))
            if abs(now - before) <= STABLE_WITHIN * before:
                return
            before = now

    def run_block(self) -> None:
        self.blocks.append(tuple(self._times(self._num_calls)))

    def timings(self) -> Timings:
        return Timings(
            name=self.side.name,
            blocks_ms=tuple(self.blocks),
            cold_start_seconds=self._ready["cold_start_seconds"],
            peak_memory_bytes=self._ask({"do": "memory"})["peak_memory_bytes"],
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._log.close()

    def _times(self, num_calls: int) -> list[float]:
        times: list[float] = self._ask({"do": "time", "calls": num_calls})["times_ms"]
        return times

    def _say(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SideFailure(self._last_words()) from None

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdout is not None
        self._say(message)
        line = self._process.stdout.readline()
        if not line:
            raise SideFailure(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideFailure(f"{self.side.name} could not be timed: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        return f"{self.side.name} could not be timed: its process died ({lines[-1] if lines else 'without a word'})."
