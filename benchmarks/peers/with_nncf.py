"""NNCF's accuracy control on OpenVINO: int8, with layers reverted to float until the drop is within the budget.

The network is its plain ONNX. Calibrated on the images to calibrate on, compared on those to select on, as
`vivace accelerate` does; max_drop is the same budget, of which NNCF gives no proof. Otherwise its defaults, and
`model_type=TRANSFORMER` for attention as its documentation asks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from inference import Exchange, Job, Loaded, program


def prepare(exchange: Exchange, out: Any, batch: int, form: str) -> Mapping[str, Any]:
    # it reports its use to its makers unless this is set
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import openvino

    def accuracy(compiled: Any, batches: Iterable[Any]) -> tuple[float, None]:
        predicted = np.concatenate([compiled(images)[0].argmax(1) for images in batches])
        return exchange.top1(predicted, "select"), None

    class Lazy:
        """Batches made on demand: thousands of photos as float32 would not fit into memory."""

        def __init__(self, split: str) -> None:
            self.split = split

        def __iter__(self) -> Any:
            return exchange.batches(self.split, batch)

        def __len__(self) -> int:
            return -(-len(exchange.labels(self.split)) // batch)

    quantized = nncf.quantize_with_accuracy_control(
        openvino.Core().read_model(exchange.graph(batch)),
        nncf.Dataset(Lazy("calibrate")),
        nncf.Dataset(Lazy("select")),
        validation_fn=accuracy,
        max_drop=exchange.facts["max_drop"] / 100,
        model_type=nncf.ModelType.TRANSFORMER if exchange.facts["attention"] else None,
    )
    openvino.save_model(quantized, out / "model.xml", compress_to_fp16=False)
    kinds = [operation.get_type_name() for operation in quantized.get_ordered_ops()]
    return {"fake_quantize_operations": kinds.count("FakeQuantize")}


def load(job: Job) -> Loaded:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads}
    compiled = openvino.Core().compile_model(job.model / "model.xml", "CPU", settings)
    return Loaded(lambda images: compiled(images)[0])


if __name__ == "__main__":
    program(prepare, load, ("nncf", "openvino"))
