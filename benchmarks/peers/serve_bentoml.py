"""The network behind BentoML, with its adaptive batches: POST /predict with photos as multipart/form-data.

    python serve_bentoml.py FOLDER PORT VARIANT WORKERS

A process for each worker, each with one thread of torch for each processor that is left to it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
import PIL.Image
import torch
from serving_model import SIZES, Classifier, told

FOLDER, VARIANT, WORKERS = "SERVED_FOLDER", "SERVED_VARIANT", "SERVED_WORKERS"


# as many requests at once as the load has connections: it refuses what it can't answer within max_latency_ms
@bentoml.service(
    workers=int(os.environ.get(WORKERS, "1")),
    traffic={"timeout": 60, "max_concurrency": 256},
    logging={"access": {"enabled": False}},
)
class Served:
    """What BentoML runs."""

    def __init__(self) -> None:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ[WORKERS])))
        self._classifier = Classifier(Path(os.environ[FOLDER]), os.environ[VARIANT])

    @bentoml.api(batchable=True, max_batch_size=SIZES[-1], max_latency_ms=10_000)
    def predict(self, images: list[PIL.Image.Image]) -> list[dict[str, Any]]:
        rows = self._classifier.probs([self._classifier.decode(image) for image in images])
        return [told(row, self._classifier.classes) for row in rows]


if __name__ == "__main__":
    folder, port, variant, workers = sys.argv[1:]
    os.environ |= {FOLDER: folder, VARIANT: variant, WORKERS: workers, "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "serve", "serve_bentoml:Served", "--host", "127.0.0.1", "--port", port]
    os.execv(sys.executable, [*command, "--working-dir", str(Path(__file__).parent)])
