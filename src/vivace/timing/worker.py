"""The timed process: it loads a bundle, then classifies batches on request."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vivace.cpus import use_processors

__all__ = ["serve"]


def serve() -> None:
    """Read requests from stdin, one JSON object per line, and answer each on stdout, until stdin ends."""
    # libraries must not print between the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    session = _Session(job)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = session.answer(request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # the parent is gone: exit immediately, without the libraries' own shutdown
    os._exit(0)


class _Session:
    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        if job["threads"] is not None:
            use_processors(job["threads"])
        images: np.ndarray = np.load(job["images"], mmap_mode="r")
        size = job["batch_size"]
        # in memory, and all of them: a single image, repeated, would stay in a cache
        self._batches = [
            np.ascontiguousarray(images[start : start + size]) for start in range(0, len(images) - size + 1, size)
        ]
        self._order = self._endless()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "load":
            return self._load()
        if request["do"] == "time":
            return {"times_ms": [self._time() for _ in range(request["calls"])]}
        from vivace.hardware import peak_memory_bytes

        return {"peak_memory_bytes": peak_memory_bytes()}

    def _load(self) -> dict[str, Any]:
        from vivace.bundle import load_bundle
        from vivace.hardware import keep_freed_memory, num_cpus, process_seconds
        from vivace.runtimes.loading import load_runtime
        from vivace.runtimes.table import RUNTIMES, imported

        keep_freed_memory()
        job = self._job
        row = RUNTIMES.get(job["runtime"])
        if row is not None and row.module is not None:
            imported(row.module)
        device: Any = SimpleNamespace(type="cpu")
        # graph runtimes need no torch, and importing it would count towards their cold start and memory
        if "torch" in sys.modules:
            import torch

            torch.set_num_threads(num_cpus())
            device = torch.device("cpu")
        self._classify = load_runtime(
            job["runtime"], load_bundle(Path(job["bundle"])), device=device, precision=job["precision"]
        )
        self._classify(self._batches[0])
        return {"cold_start_seconds": process_seconds()}

    def _time(self) -> float:
        batch = next(self._order)
        start = time.perf_counter()
        self._classify(batch)
        return (time.perf_counter() - start) * 1e3

    def _endless(self) -> Iterator[np.ndarray]:
        while True:
            yield from self._batches
