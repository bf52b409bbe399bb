"""A side of module_peers.py: makes one module fast in one way, and serves it to `alternate.py` in the same process.

Speaks as peers/inference.py says: a job first, then {"do": "load" | "time" | "memory" | "classify", …}, a line each.
`load` is the whole way from the module to a program; its seconds and details are written to SIDE.json.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.inference import peak_memory_bytes
from peers.module_ways import SIDES, Given

__all__ = ["Session"]

# of vivace.acceleration.modules.timing
LEARNED_BYTES = 2**25 - 2**16


class Session:
    """Answers requests about one side."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._given = Given(job)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "load":
            return self._load()
        if request["do"] == "time":
            return {"times_ms": [self._time() for _ in range(request["calls"])]}
        if request["do"] == "memory":
            return {"peak_memory_bytes": peak_memory_bytes()}
        np.save(request["out"], np.concatenate([self._run(x) for x, _ in self._given.batches(request["split"])]))
        return {}

    def _load(self) -> dict[str, Any]:
        job, batches = self._given.job, self._given.batches("held-out")
        # glibc keeps freed memory from now on (vivace's timing says why): else torch is faster or slower by chance
        torch.empty(LEARNED_BYTES, dtype=torch.uint8)
        began = time.perf_counter()
        self._run, details = SIDES[job["side"]](self._given)
        self._run(batches[0][0])
        facts = {"prepare_seconds": time.perf_counter() - began, "details": details}
        (self._given.work / f"{job['side']}.json").write_text(json.dumps(facts))
        self._placed: Iterator[Any] = itertools.cycle([inputs for inputs, _ in batches[:16]])
        return {}

    def _time(self) -> float:
        inputs = next(self._placed)
        start = time.perf_counter()
        self._run(inputs)
        return (time.perf_counter() - start) * 1e3


def main() -> None:
    # what a library prints must not mix with the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    session = Session(job)
    for line in sys.stdin:
        try:
            answer = session.answer(json.loads(line))
        except Exception as error:
            first = next((text for text in str(error).splitlines() if text.strip()), "")
            answer = {"error": f"{type(error).__name__}: {first}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # the parent is gone: at once, without taking libraries apart
    os._exit(0)


if __name__ == "__main__":
    main()
