"""The parent's side of a timed process: starts it, sends requests, limits the time for answers, and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vivace import systems
from vivace.errors import OutOfTime, VivaceError

__all__ = ["Job", "Named", "Side", "SideFailure", "TimedProcess", "process_of"]

MIN_CALLS = 3
# a process is warm once two consecutive blocks differ by less than this fraction
STABLE_WITHIN = 0.05
MAX_WARMUP_BLOCKS = 12
# a compiler may take minutes for a large network; a library in a deadlock would never answer
LOAD_SECONDS = 600.0
# a block is given up after this factor times its expected time plus these seconds
BLOCK_FACTOR = 100.0
BLOCK_SECONDS = 60.0
PROGRAM = (
    "import json, sys; sys.path.extend(p for p in json.loads(sys.stdin.readline()) if p not in sys.path); "
    "from vivace.timing.worker import serve; serve()"
)


class SideFailure(VivaceError):
    """A side could not be loaded, its process died, or it gave no answer in time."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What to time: a bundle's folder, on a runtime in a precision."""

    name: str
    bundle: Path
    runtime: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings that are the same for all sides that are timed together."""

    batch_size: int
    threads: int | None
    block_seconds: float


class Named(Protocol):
    """What a process times, as far as messages go: a Side, or another program of a benchmark."""

    @property
    def name(self) -> str: ...


class TimedProcess:
    """A process that times one side. Methods raise SideFailure if it dies, fails or gives no answer in time."""

    def __init__(
        self,
        side: Named,
        command: Sequence[str],
        greeting: Sequence[Any],
        block_seconds: float,
        environment: Mapping[str, str],
    ) -> None:
        """Start the process. greeting: its first lines, as JSON. environment: variables to add.

        It reads requests from stdin, one JSON object a line: {"do": "load" | "time" | "memory", …}, and answers each
        with one on stdout: {"cold_start_seconds": …}, {"times_ms": […]}, {"peak_memory_bytes": …} or {"error": …}.
        """
        self.side = side
        self.blocks: list[tuple[float, ...]] = []
        self._block_seconds = block_seconds
        self._num_calls = MIN_CALLS
        self._timeout = LOAD_SECONDS
        self.deadline = float("inf")
        """time.monotonic() after which waiting for an answer raises OutOfTime."""
        self._unread = b""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **environment},
            # Ctrl-C in a terminal reaches a whole group: in one of its own, the child is ended by its parent alone
            process_group=0,
            creationflags=systems.NEW_GROUP,
        )
        assert self._process.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._greeting = list(greeting)

    def begin_load(self) -> None:
        """Ask it to load its bundle, without waiting: several processes may load at the same time."""
        for message in [*self._greeting, {"do": "load"}]:
            self._say(message)

    def end_load(self) -> float:
        """Wait until it has classified its first batch; returns the seconds from its start until then."""
        return float(self.answer()["cold_start_seconds"])

    def warm_up(self, num_calls: int | None = None) -> int:
        """Run blocks until two in a row take the same time; returns the calls per block: `num_calls`, if given."""
        once = float(np.median(self.times(MIN_CALLS)))
        self._num_calls = num_calls or max(MIN_CALLS, round(1e3 * self._block_seconds / max(once, 1e-3)))
        before = once
        for _ in range(MAX_WARMUP_BLOCKS):
            # the first call may have been slow, so the time limit follows the last block
            self._timeout = BLOCK_SECONDS + BLOCK_FACTOR * self._num_calls * before / 1e3
            now = float(np.median(self.times(self._num_calls)))
            if abs(now - before) <= STABLE_WITHIN * before:
                break
            before = now
        return self._num_calls

    def run_block(self) -> None:
        """Time one block, and append the ms of its calls to `blocks`."""
        self.blocks.append(tuple(self.times(self._num_calls)))

    def peak_memory_bytes(self) -> int | None:
        """Its peak resident memory; None if the system does not say."""
        answer: int | None = self.ask({"do": "memory"})["peak_memory_bytes"]
        return answer

    def close(self) -> None:
        """End it, and everything that it started, immediately."""
        if self._process.poll() is None:
            # a compiler's workers are in its group
            systems.end_group(self._process)
            self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._log.close()

    def times(self, num_calls: int) -> list[float]:
        """Milliseconds of each of `num_calls` calls."""
        times: list[float] = self.ask({"do": "time", "calls": num_calls})["times_ms"]
        return times

    def ask(self, message: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """Send a request, and wait for the answer. timeout: seconds, where it is no block of calls."""
        self._say(message)
        if timeout is None:
            return self.answer()
        before, self._timeout = self._timeout, timeout
        try:
            return self.answer()
        finally:
            self._timeout = before

    def _say(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SideFailure(self._failure()) from None

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer."""
        line = self._line()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideFailure(f"{self.side.name} could not be timed: {answer['error']}")
        return answer

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + self._timeout
        while b"\n" not in self._unread:
            if time.monotonic() >= self.deadline:
                raise OutOfTime("out of time")
            left = min(until, self.deadline) - time.monotonic()
            if not self._selector.select(max(0.0, min(left, systems.WAIT_SECONDS))):
                if time.monotonic() < until:
                    continue
                raise SideFailure(
                    f"{self.side.name} could not be timed: no answer within {self._timeout:.0f} s; its process was "
                    f"ended. Try its runtime separately: a library may be in a deadlock."
                )
            part = os.read(self._process.stdout.fileno(), 2**20)
            if not part:
                raise SideFailure(self._failure())
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _failure(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            # it may hang although its pipe is closed; then close() kills it
            self._process.wait(10)
        status = self._process.returncode
        if status == -signal.SIGILL:
            return f"{self.side.name} could not be timed: it needs an instruction that this processor lacks (SIGILL)."
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        words = lines[-1] if lines else "no output"
        if status is not None and status < 0:
            words = f"{signal.Signals(-status).name}, {words}"
        return f"{self.side.name} could not be timed: its process died ({words})."


def process_of(side: Side, images: Path, job: Job, environment: Mapping[str, str]) -> TimedProcess:
    """Start the process of a bundle. images: a .npy file, uint8 [N, H, W, C]. environment: variables to add."""
    greeting = [
        [str(folder) for folder in sys.path],
        {
            "bundle": os.fspath(side.bundle),
            "runtime": side.runtime,
            "precision": side.precision,
            "images": os.fspath(images),
            "batch_size": job.batch_size,
            "threads": job.threads,
        },
    ]
    return TimedProcess(side, [sys.executable, "-P", "-c", PROGRAM], greeting, job.block_seconds, environment)
