"""Damaged and hostile inputs by the thousand: python tests/fuzz/run.py --inputs 100000 (or `make fuzz`).

Each input is made from (seed, kind, number) alone, so that one that failed can be tried again:
--kind bundle --first 1234 --inputs 1. An input passes if it is read, or refused by a VivaceError of one short line,
with no socket, no program, no file outside its folder, within 5 s of processor time and 1 GB. Exit status 1 if any
did not.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

# without an answer: of a clock for what waits and uses no processor, of processor time for what turns in circles
IDLE_SECONDS, BUSY_SECONDS = 120, 120
# shown for each kind
MAX_SHOWN = 20
CHUNK = 2500
TRIES = 3


def worker(kind: str, first: int, count: int, seed: int, folder: Path) -> None:
    """Try inputs one after the other, a line of JSON on stdout for each."""
    import warnings

    import numpy as np
    import torch
    from fuzzed import KINDS, emptied
    from sandbox import MAX_CPU_SECONDS, Sandbox

    # what libraries print belongs to nobody here
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    torch.set_num_threads(1)
    row = KINDS[kind]
    prepared = row.prepare(emptied(folder / "prepared"))
    sandbox = Sandbox(folder)
    os.chdir(folder)
    for number in range(first, first + count):
        print(json.dumps({"started": number}), file=out, flush=True)
        # once more where it took too long: a processor that is shared with other work counts more seconds
        for _ in range(TRIES):
            rng = np.random.default_rng((seed, sorted(KINDS).index(kind), number))
            outcome = sandbox.try_input(row.feed(prepared, emptied(folder / "input"), rng))
            if outcome.cpu_seconds <= MAX_CPU_SECONDS:
                break
        print(
            json.dumps({"number": number, **outcome.__dict__}),
            file=out,
            flush=True,
        )


class _Process:
    """A worker, and the lines that it prints."""

    def __init__(self, kind: str, first: int, count: int, seed: int, folder: Path) -> None:
        command = [sys.executable, __file__, "--worker", kind, "--first", str(first), "--inputs", str(count)]
        command += ["--seed", str(seed), "--folder", str(folder)]
        own = {
            "VIVACE_CACHE": str(folder / "vivace"),
            "TMPDIR": str(folder),
            # torch makes this folder when its compiler is imported, which is none of the input's doing
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        }
        env = {**os.environ, "OMP_NUM_THREADS": "1", **own}
        self._errors = (folder / "stderr").open("w+")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=env)
        self._lines: queue.Queue[str | None] = queue.Queue()
        assert self._process.stdout is not None
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)

    def _cpu_seconds(self) -> float:
        """Of the worker so far; 0 for one that has ended."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def next(self) -> dict[str, Any] | str:
        """The next line, or how the worker ended; "" for a good end."""
        began = used = self._cpu_seconds()
        while True:
            try:
                line = self._lines.get(timeout=IDLE_SECONDS)
                break
            except queue.Empty:
                before, used = used, self._cpu_seconds()
                # a machine with other work to do is slow, and no fault of the input
                if used == before or used - began > BUSY_SECONDS:
                    self._process.kill()
                    return f"no answer after {used - began:.0f} s of processor time"
        if line is not None:
            decoded: dict[str, Any] = json.loads(line)
            return decoded
        status = self._process.wait()
        self._errors.seek(0)
        return "" if status == 0 else f"the process ended with {status}: {self._errors.read()[-500:]!r}"


def fuzz(kind: str, first: int, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Counts of how inputs ended, the faults, and the most that one took."""
    counts: collections.Counter[str] = collections.Counter()
    faults: list[dict[str, Any]] = []
    longest, largest = 0.0, 0
    end = first + count
    while first < end:
        folder.mkdir(parents=True, exist_ok=True)
        # started anew now and then: what libraries keep for each input adds up
        process, current = _Process(kind, first, min(CHUNK, end - first), seed, folder), first - 1
        while isinstance(line := process.next(), dict):
            if "started" in line:
                current = line["started"]
                continue
            counts[line["kind"]] += 1
            longest, largest = max(longest, line["cpu_seconds"]), max(largest, line["peak_bytes"])
            if line["kind"] == "FAULT":
                faults.append({"input": line["number"], "what": line["message"]})
        if line:
            counts["FAULT"] += 1
            faults.append({"input": current, "what": line})
            if current < first:
                break
        first = current + 1
    return {
        "kind": kind,
        "seed": seed,
        "inputs": sum(counts.values()),
        "counts": dict(counts.most_common()),
        "max_cpu_seconds": round(longest, 2),
        "max_bytes": largest,
        "faults": faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=("bundle", "recipe", "manifest", "archive", "image"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="one line of JSON for each kind")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.first, options.inputs, options.seed, options.folder)
        return 0
    from fuzzed import planned

    plan = {options.kind: options.inputs} if options.kind else planned(options.inputs)
    # in pieces, so that the last kind does not run alone
    size = 5000 if options.inputs > 5000 else options.inputs
    pieces = [
        (kind, options.first + start, min(size, count - start))
        for kind, count in plan.items()
        for start in range(0, count, size)
    ]
    results: list[dict[str, Any]] = []
    lock, began = threading.Lock(), time.monotonic()

    def drain(index: int) -> None:
        while True:
            with lock:
                if not pieces:
                    return
                kind, first, count = pieces.pop(0)
            found = fuzz(kind, first, count, options.seed, Path(temporary, str(index)))
            with lock:
                results.append(found)
                _tell(found, options.json, time.monotonic() - began)

    with tempfile.TemporaryDirectory(prefix="vivace-fuzz-") as temporary:
        threads = [threading.Thread(target=drain, args=(index,)) for index in range(options.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    num_faults = sum(len(result["faults"]) for result in results)
    if not options.json:
        total = sum(result["inputs"] for result in results)
        print(f"{total:,} inputs, {num_faults} faults, {time.monotonic() - began:,.0f} s")
    return 1 if num_faults else 0


def _tell(found: dict[str, Any], as_json: bool, seconds: float) -> None:
    if as_json:
        print(json.dumps(found), flush=True)
        return
    counts = ", ".join(f"{count:,} {name}" for name, count in found["counts"].items())
    print(
        f"{seconds:6.0f} s  {found['kind']}: {counts}; at most {found['max_cpu_seconds']} s, "
        f"{found['max_bytes'] / 1e6:,.0f} MB",
        flush=True,
    )
    for fault in found["faults"][:MAX_SHOWN]:
        print(f"         --kind {found['kind']} --first {fault['input']} --inputs 1: {fault['what']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
