"""What every side of `infer.py` shares: the files it is given, and the life of a process that is timed.

    python with_nncf.py prepare EXCHANGE OUT --batch 1     writes a model into OUT; one line of JSON at the end
    python with_nncf.py serve                              loads it and classifies as told, line by line

Standard library and numpy only: it runs in the environment of each peer. What it serves is told on stdin, a JSON object
a line, and answered on stdout: first the job, then {"do": "load" | "time" | "memory" | "classify", …}.

Shapes: images_NHWC uint8; images_BCHW float32, normalized; scores_BK logits or probabilities.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Exchange", "Job", "Loaded", "peak_memory_bytes", "program"]


@dataclass(frozen=True)
class Exchange:
    """The folder with a network and images, for programs that know neither vivace nor the data set."""

    folder: Path

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """mean and std per channel on the 0..1 scale, size, channels, num_classes, attention, max_drop, bundle."""
        facts: dict[str, Any] = json.loads((self.folder / "facts.json").read_text())
        return facts

    def graph(self, batch: int) -> Path:
        """The network as plain ONNX: "images" [batch, C, size, size] float32, normalized → "logits"."""
        return self.folder / f"model-{batch}.onnx"

    def program(self, batch: int) -> Path:
        """The network as torch.export gives it, of the same shapes."""
        return self.folder / f"model-{batch}.pt2"

    def labels(self, split: str) -> np.ndarray:
        """int64 [N]."""
        labels: np.ndarray = np.load(self.folder / f"{split}-labels.npy")
        return labels

    def batches(self, split: str, size: int, *, raw: bool = False) -> Iterator[np.ndarray]:
        """Batches of exactly `size` images of "calibrate", "select", "certify" or "timed"; the last repeats its end.

        images_BCHW, or with `raw` images_NHWC.
        """
        stored: np.ndarray = np.load(self.folder / f"{split}.npy", mmap_mode="r")
        for start in range(0, len(stored), size):
            rows = np.minimum(np.arange(start, start + size), len(stored) - 1)
            images_NHWC = np.ascontiguousarray(stored[rows])
            yield images_NHWC if raw else self._normalized(images_NHWC)

    def whole_batches(self, split: str, size: int, *, raw: bool = False) -> Iterator[np.ndarray]:
        """As `batches`, without a last one that is not full; at least one."""
        count = len(np.load(self.folder / f"{split}.npy", mmap_mode="r"))
        for number, batch in enumerate(self.batches(split, size, raw=raw)):
            if number == 0 or (number + 1) * size <= count:
                yield batch

    def top1(self, predicted_N: np.ndarray, split: str) -> float:
        """Fraction of the split's images whose class was predicted correctly."""
        labels = self.labels(split)
        return float((predicted_N[: len(labels)] == labels).mean())

    def _normalized(self, images_NHWC: np.ndarray) -> np.ndarray:
        mean, std = (np.asarray(self.facts[name], dtype=np.float32) for name in ("mean", "std"))
        return np.ascontiguousarray(((images_NHWC / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process that serves is told."""

    exchange: Exchange
    model: Path
    """The folder that `prepare` wrote."""
    form: str
    batch: int
    threads: int


@dataclass(frozen=True)
class Loaded:
    """A model that is ready: `classify` is what is timed."""

    classify: Callable[[Any], np.ndarray]
    """What `place` gave → scores_BK."""
    place: Callable[[np.ndarray], Any] = lambda images: images
    """A batch → what `classify` takes: another layout or type, made before the clock runs."""


Prepare = Callable[[Exchange, Path, int, str], Mapping[str, Any] | None]
Load = Callable[[Job], Loaded]


def program(prepare: Prepare, load: Load, packages: tuple[str, ...], *, raw: bool = False) -> None:
    """The main function of a side. prepare(exchange, out, batch, form) writes into `out`, and may give details.

    packages: whose versions are told. raw: the side takes images_NHWC.
    """
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("serve", help="classify as told on stdin")
    preparing = verbs.add_parser("prepare", help="write a model")
    preparing.add_argument("exchange", type=Path)
    preparing.add_argument("out", type=Path)
    preparing.add_argument("--batch", type=int, default=1)
    preparing.add_argument("--form", default="")
    args = parser.parse_args()
    if args.verb == "serve":
        serve(load, raw=raw)
    began = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    details = prepare(Exchange(args.exchange), args.out, args.batch, args.form) or {}
    result = {
        "prepare_seconds": time.perf_counter() - began,
        "bytes": sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()),
        "versions": {name: version(name) for name in packages},
        "details": dict(details),
    }
    print(json.dumps(result), flush=True)


def serve(load: Load, *, raw: bool) -> None:
    """Answer until stdin ends, and end the process."""
    # what a library prints must not mix with the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    told = json.loads(sys.stdin.readline())
    job = Job(**{**told, "exchange": Exchange(Path(told["exchange"])), "model": Path(told["model"])})
    # before any library counts the processors
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    session = _Session(job, load, raw)
    for line in sys.stdin:
        try:
            answer = session.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # the parent is gone: at once, without taking libraries apart
    os._exit(0)


class _Session:
    def __init__(self, job: Job, load: Load, raw: bool) -> None:
        self._job, self._load, self._raw = job, load, raw

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        exchange, batch = self._job.exchange, self._job.batch
        if request["do"] == "load":
            first = next(exchange.whole_batches("timed", batch, raw=self._raw))
            self._model = self._load(self._job)
            self._model.classify(self._model.place(first))
            return {}
        if request["do"] == "time":
            return {"times_ms": [self._time() for _ in range(request["calls"])]}
        if request["do"] == "memory":
            return {"peak_memory_bytes": peak_memory_bytes()}
        predicted = [
            np.asarray(self._model.classify(self._model.place(images))).argmax(1)
            for images in exchange.batches(request["split"], batch, raw=self._raw)
        ]
        count = len(np.load(exchange.folder / f"{request['split']}.npy", mmap_mode="r"))
        np.save(request["out"], np.concatenate(predicted)[:count].astype(np.int64))
        return {}

    @functools.cached_property
    def _placed(self) -> Iterator[Any]:
        # in memory, and all of them: a single image over and over would stay in the CPU's cache
        batches = self._job.exchange.whole_batches("timed", self._job.batch, raw=self._raw)
        return _endless([self._model.place(images) for images in batches])

    def _time(self) -> float:
        images = next(self._placed)
        start = time.perf_counter()
        self._model.classify(images)
        return (time.perf_counter() - start) * 1e3


def _endless(values: list[Any]) -> Iterator[Any]:
    while True:
        yield from values


def peak_memory_bytes() -> int:
    """Resident, the largest so far."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
