"""A FastAPI endpoint around the network, as one writes it: POST /predict with a photo's bytes.

    python serve_fastapi.py FOLDER PORT VARIANT WORKERS

A process for each worker, each with one thread of torch; decoding and the network run in Starlette's thread pool, with
one call of the network at a time. No batches: FastAPI has none.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from serving_model import Classifier, told

FOLDER, VARIANT, THREADS = "SERVED_FOLDER", "SERVED_VARIANT", "SERVED_THREADS"


def create() -> FastAPI:
    """The application of one worker."""
    torch.set_num_threads(int(os.environ[THREADS]))
    classifier = Classifier(Path(os.environ[FOLDER]), os.environ[VARIANT], sizes=(1,))
    app, one_at_a_time = FastAPI(), threading.Lock()

    def classify(photo: bytes) -> dict[str, Any]:
        pixels = classifier.decode(photo)
        with one_at_a_time:
            (probs,) = classifier.probs([pixels])
        return told(probs, classifier.classes)

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(classify, await request.body())

    return app


if __name__ == "__main__":
    folder, port, variant, workers = sys.argv[1:]
    os.environ |= {FOLDER: folder, VARIANT: variant, THREADS: str(max(1, (os.cpu_count() or 1) // int(workers)))}
    uvicorn.run(
        "serve_fastapi:create",
        factory=True,
        host="127.0.0.1",
        port=int(port),
        workers=int(workers),
        # a worker that compiles answers no check for a while, and would be started anew again and again
        timeout_worker_healthcheck=600,
        log_level="error",
        access_log=False,
    )
