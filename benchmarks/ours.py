"""Our side of `infer.py`: a bundle on its runtime, as `vivace.runtimes` loads it for prediction.

It gets raw uint8 images and normalises inside, and gives probabilities. Started as hand.py is, with the bundle as the
model and "RUNTIME PRECISION" as the variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peers.inference import Exchange, Job, Loaded, program


def prepare(exchange: Exchange, out: Path, batch: int, form: str) -> Mapping[str, Any] | None:
    raise SystemExit("a bundle is prepared by vivace accelerate")


def load(job: Job) -> Loaded:
    import torch

    from vivace.bundle import load_bundle
    from vivace.hardware import keep_freed_memory
    from vivace.runtimes.loading import load_runtime

    # as the predictor does
    keep_freed_memory()
    torch.set_num_threads(job.threads)
    runtime, _, precision = job.form.partition(" ")
    return Loaded(load_runtime(runtime, load_bundle(job.model), device=torch.device("cpu"), precision=precision))


if __name__ == "__main__":
    program(prepare, load, ("vivace",), raw=True)
