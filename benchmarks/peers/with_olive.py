"""Olive's workflow to an int8 ONNX for a CPU: its graph optimizer, then static quantization with its defaults.

The network is its plain ONNX, and the images to calibrate on are a data set of Olive's. Its command `olive optimize`
takes language models alone (0.13), so the workflow is written out as its examples for vision are, and run by
`olive.run`. Run by ONNX Runtime.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference import Exchange, Job, Loaded, program

PASSES = {"optimize": "OnnxPeepholeOptimizer", "quantize": "OnnxStaticQuantization"}


def prepare(exchange: Exchange, out: Path, batch: int, form: str) -> Mapping[str, Any]:
    # it reports its use to its makers unless these are set
    os.environ.setdefault("OLIVE_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("CI", "1")
    import torch
    from olive import run
    from olive.data.registry import Registry

    batches = list(exchange.whole_batches("calibrate", batch))

    class Calibration(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(batches)

        def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], int]:
            return {"images": torch.from_numpy(batches[index])}, 0

    @Registry.register_dataset("calibration_images")
    def calibration_images(**_: Any) -> Calibration:
        return Calibration()

    with tempfile.TemporaryDirectory() as work:
        config = {
            "input_model": {"type": "ONNXModel", "model_path": str(exchange.graph(batch))},
            "systems": {
                "cpu": {
                    "type": "LocalSystem",
                    "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
                }
            },
            "data_configs": [
                {
                    "name": "calibration",
                    "type": "DataContainer",
                    "load_dataset_config": {"type": "calibration_images"},
                    "dataloader_config": {"type": "no_auto_batch_dataloader"},
                }
            ],
            "passes": {
                "optimize": {"type": PASSES["optimize"]},
                "quantize": {"type": PASSES["quantize"], "data_config": "calibration"},
            },
            "host": "cpu",
            "target": "cpu",
            "output_dir": f"{work}/out",
            "cache_dir": f"{work}/cache",
        }
        run(config)
        graph, *others = sorted(Path(work, "out").rglob("*.onnx"))
        assert not others, f"more than one graph: {others}"
        for path in graph.parent.glob(f"{graph.stem}.onnx*"):
            shutil.copy(path, out / path.name)
        (out / "name.txt").write_text(graph.name)
    return {"passes": list(PASSES.values())}


def load(job: Job) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 3
    path = job.model / (job.model / "name.txt").read_text()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Loaded(lambda images: session.run(None, {"images": images})[0])


if __name__ == "__main__":
    program(prepare, load, ("olive-ai", "onnxruntime"))
