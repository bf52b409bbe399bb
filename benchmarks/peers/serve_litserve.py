"""The network behind LitServe, with its batches: POST /predict with a photo's bytes.

    python serve_litserve.py FOLDER PORT VARIANT WORKERS

WORKERS processes that decode and run batches, one process that speaks HTTP. Photos come as raw bytes: JSON with base64,
as in LitServe's examples, would cost it more. It reads the annotation itself, which must be no text: so nothing is
imported from __future__ here.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import litserve
import torch
from fastapi import Body
from serving_model import SIZES, Classifier, told

# seconds; a batch is run when it is full or has waited so long
BATCH_TIMEOUT = 0.005
Photo = Annotated[bytes, Body(media_type="image/jpeg")]


class Api(litserve.LitAPI):
    """decode_request, batch, predict, unbatch, encode_response: what LitServe calls in a worker."""

    def __init__(self, folder: Path, variant: str, threads: int) -> None:
        super().__init__(max_batch_size=SIZES[-1], batch_timeout=BATCH_TIMEOUT)
        self._arguments = folder, variant, threads

    def setup(self, device: Any) -> None:
        folder, variant, threads = self._arguments
        torch.set_num_threads(threads)
        self._classifier = Classifier(folder, variant)

    def decode_request(self, request: Photo) -> torch.Tensor:
        return self._classifier.decode(request)

    def batch(self, inputs: Any) -> Any:
        return inputs

    def predict(self, x: Any) -> Any:
        return self._classifier.probs(x)

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return told(output, self._classifier.classes)


if __name__ == "__main__":
    folder, port, variant, workers = sys.argv[1:]
    api = Api(Path(folder), variant, max(1, (os.cpu_count() or 1) // int(workers)))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers), fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), log_level="error", access_log=False, generate_client_file=False)
