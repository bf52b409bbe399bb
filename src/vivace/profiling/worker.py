"""The process that profiles a bundle: it loads the bundle, runs it under its runtime's profiler, and answers."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vivace.bundle import Bundle, load_bundle
from vivace.cpus import use_processors
from vivace.errors import ConfigError, InputError
from vivace.profiling.profile import LayerTime
from vivace.runtimes.table import RUNTIMES, imported

__all__ = ["Job", "serve"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to profile, and how."""

    bundle: Bundle
    runtime: str
    precision: str
    images_NHWC: np.ndarray
    folder: Path
    """Temporary folder for the profiler's files."""
    calls: int
    warmup: int


def serve() -> None:
    """Read a job from stdin, one line of JSON, and write the answer to stdout as JSON."""
    # libraries must not print into the answer
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        answer = _answer(json.loads(sys.stdin.readline()))
    except Exception as error:
        text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        answer = {"error": text, "refused": isinstance(error, InputError)}
    answers.write(json.dumps(answer))
    answers.flush()
    # without the libraries' own shutdown, which may hang
    os._exit(0)


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    if asked["threads"] is not None:
        use_processors(asked["threads"])
    runtime = asked["runtime"]
    profilers = {row.name: row.profiler for row in RUNTIMES.values() if row.profiler is not None}
    if runtime not in profilers:
        raise ConfigError(f"there is no profiler for {runtime}. Known: {', '.join(profilers)}.")
    job = Job(
        bundle=load_bundle(asked["bundle"]),
        runtime=runtime,
        precision=asked["precision"],
        images_NHWC=np.load(asked["images"]),
        folder=Path(asked["folder"]),
        calls=asked["calls"],
        warmup=asked["warmup"],
    )
    profile: Callable[[Job], tuple[list[LayerTime], list[float]]] = imported(profilers[runtime]).profile
    layers, calls_ms = profile(job)
    return {"layers": [dataclasses.asdict(layer) for layer in layers], "call_ms": float(np.median(calls_ms))}
