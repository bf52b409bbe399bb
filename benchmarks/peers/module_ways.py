"""The ways to make a module fast that module_peers.py compares: each from the module to a program, in this process.

Each peer is used as its documentation asks for on a CPU; what it is not given is said in ABOUT.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fitted_modules import TEN, Batch, called, logits_of, made

__all__ = ["ABOUT", "SIDES", "Given", "Run", "scores_of"]

ABOUT = {
    "eager": "the module as it is, in inference mode",
    "compiled": "torch.compile with frozen weights, float32",
    "vivace": "vivace.accelerate(module, data): the data are those to tune on",
    "nncf-ac": "nncf.quantize_with_accuracy_control on OpenVINO, from ONNX; a quarter of the data to calibrate, the "
    "others to validate on, the same metric and drop",
    "torchao-pt2e": "torchao's PT2E quantization by X86InductorQuantizer, compiled with frozen weights; no accuracy "
    "control",
    "torchao-dynamic": "torchao's quantize_ with Int8DynamicActivationInt8WeightConfig (linear layers), compiled; no "
    "accuracy control",
    "olive": "Olive's OnnxPeepholeOptimizer and OnnxStaticQuantization, on ONNX Runtime; no accuracy control",
}
# the inputs of a batch → the class of each sample (or pixel)
Run = Callable[[Any], np.ndarray]


class Given:
    """What every side starts from."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.work = job, Path(job["work"])
        self.task = TEN[job["module"]]
        self.module = made(job["module"])

    def batches(self, split: str) -> list[Batch]:
        """Of "tune" or "held-out"."""
        found: list[Batch] = torch.load(self.work / f"{split}.pt")
        return found

    @property
    def calibration(self) -> list[Batch]:
        return self.batches("tune")[::4]

    @property
    def validation(self) -> list[Batch]:
        return [batch for place, batch in enumerate(self.batches("tune")) if place % 4]

    def flat(self) -> nn.Module:
        """Tensors → the logits alone: what is exported."""
        return Flat(self.module, list(self.batches("tune")[0][0]) if self.task.kind == "named" else None).eval()

    def onnx(self, folder: Path) -> Path:
        """Its ONNX graph, for batches as they are."""
        tensors = tensors_of(self.batches("tune")[0][0])
        names = [f"input{place}" for place in range(len(tensors))]
        path = folder / "module.onnx"
        with contextlib.redirect_stdout(sys.stderr):
            torch.onnx.export(
                self.flat(), tuple(tensors), path, input_names=names, output_names=["logits"], dynamo=True
            )
        return path


def scores_of(classes: np.ndarray, targets: Tensor, *, masks: bool) -> np.ndarray:
    """A score in [0, 1] for each sample: of masks the IoU of class 0, else whether the class is right."""
    if not masks:
        return (classes == targets.numpy()).astype(np.float64)
    mine, theirs = ((labels == 0).reshape(len(labels), -1) for labels in (classes, targets.numpy()))
    return (mine & theirs).sum(1) / (mine | theirs).sum(1).clip(1)


class Flat(nn.Module):
    def __init__(self, module: nn.Module, names: list[str] | None) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *tensors: Tensor) -> Any:
        inputs = tuple(tensors) if self.names is None else dict(zip(self.names, tensors, strict=True))
        return logits_of(called(self.module, inputs))


def tensors_of(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, dict):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, tuple) else [inputs]


def _torch_run(function: Callable[..., Any], mode: Callable[[], Any] = torch.no_grad) -> Run:
    def run(inputs: Any) -> np.ndarray:
        with mode():
            classes: np.ndarray = logits_of(called(function, inputs)).argmax(1).numpy()
        return classes

    return run


def _of_tensors(function: Callable[..., Any]) -> Run:
    """Of a function of tensors that returns the logits."""

    def run(inputs: Any) -> np.ndarray:
        with torch.no_grad():
            classes: np.ndarray = function(*tensors_of(inputs)).argmax(1).numpy()
        return classes

    return run


def eager(given: Given) -> tuple[Run, dict[str, Any]]:
    return _torch_run(given.module, torch.inference_mode), {}


def compiled(given: Given) -> tuple[Run, dict[str, Any]]:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return _torch_run(torch.compile(given.module)), {}


def with_vivace(given: Given) -> tuple[Run, dict[str, Any]]:
    import vivace

    job = given.job
    result = vivace.accelerate(
        given.module,
        given.batches("tune"),
        metric=given.task.metric,
        max_drop=job["max_drop"],
        within=job["within"],
        on_message=lambda _: None,
    )
    details = {name: getattr(result, name) for name in ("status", "reason", "runtime", "precision", "drop_bound")}
    return _torch_run(result.module), {**details, "speedup": result.speedup, "warnings": result.warnings}


def with_nncf(given: Given) -> tuple[Run, dict[str, Any]]:
    # it reports its use to its makers unless this is set
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import openvino

    def arrays(batch: Batch) -> list[np.ndarray]:
        return [tensor.numpy() for tensor in tensors_of(batch[0])]

    def accuracy(model: Any, batches: Any) -> tuple[float, None]:
        masks = given.task.kind == "masks"
        scores = [scores_of(model(arrays(batch))[0].argmax(1), batch[1], masks=masks) for batch in batches]
        return float(np.concatenate(scores).mean()), None

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        model = openvino.Core().read_model(given.onnx(Path(folder)))
        transformer = any(isinstance(part, nn.MultiheadAttention) for part in given.module.modules())
        quantized = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(given.calibration, arrays),
            nncf.Dataset(given.validation, arrays),
            validation_fn=accuracy,
            max_drop=given.job["max_drop"] / 100,
            model_type=nncf.ModelType.TRANSFORMER if transformer or "vit" in given.job["module"] else None,
        )
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": given.job["threads"]}
        program = openvino.Core().compile_model(quantized, "CPU", settings)
    kinds = [operation.get_type_name() for operation in quantized.get_ordered_ops()]

    def run(inputs: Any) -> np.ndarray:
        classes: np.ndarray = program([tensor.numpy() for tensor in tensors_of(inputs)])[0].argmax(1)
        return classes

    return run, {"fake_quantize_operations": kinds.count("FakeQuantize")}


def torchao_pt2e(given: Given) -> tuple[Run, dict[str, Any]]:
    import torch._inductor.config
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch._inductor.config.freezing = True
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        example = tuple(tensors_of(given.calibration[0][0]))
        observed = prepare_pt2e(torch.export.export(given.flat(), example).module(), quantizer)
        for inputs, _ in given.calibration:
            observed(*tensors_of(inputs))
        return _of_tensors(torch.compile(convert_pt2e(observed))), {}


def torchao_dynamic(given: Given) -> tuple[Run, dict[str, Any]]:
    import torch._inductor.config
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    torch._inductor.config.freezing = True
    quantize_(given.module, Int8DynamicActivationInt8WeightConfig())
    return _torch_run(torch.compile(given.module)), {}


def with_olive(given: Given) -> tuple[Run, dict[str, Any]]:
    # it reports its use to its makers unless these are set
    os.environ.setdefault("OLIVE_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("CI", "1")
    import onnxruntime
    from olive import run as run_workflow
    from olive.data.registry import Registry

    batches = [
        {f"input{place}": tensor for place, tensor in enumerate(tensors_of(inputs))} for inputs, _ in given.calibration
    ]

    class Calibration(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(batches)

        def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
            return batches[index], 0

    @Registry.register_dataset("calibration_batches")
    def calibration_batches(**_: Any) -> Calibration:
        return Calibration()

    cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(sys.stderr):
        run_workflow(
            {
                "input_model": {"type": "ONNXModel", "model_path": str(given.onnx(Path(work)))},
                "systems": {"cpu": {"type": "LocalSystem", "accelerators": [cpu]}},
                "data_configs": [
                    {
                        "name": "calibration",
                        "type": "DataContainer",
                        "load_dataset_config": {"type": "calibration_batches"},
                        "dataloader_config": {"type": "no_auto_batch_dataloader"},
                    }
                ],
                "passes": {
                    "optimize": {"type": "OnnxPeepholeOptimizer"},
                    "quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"},
                },
                "host": "cpu",
                "target": "cpu",
                "output_dir": f"{work}/out",
                "cache_dir": f"{work}/cache",
            }
        )
        graph, *_ = sorted(Path(work, "out").rglob("*.onnx"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = given.job["threads"]
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(inputs: Any) -> np.ndarray:
        named = {f"input{place}": tensor.numpy() for place, tensor in enumerate(tensors_of(inputs))}
        classes: np.ndarray = session.run(None, named)[0].argmax(1)
        return classes

    return run, {}


SIDES: dict[str, Callable[[Given], tuple[Run, dict[str, Any]]]] = {
    "eager": eager,
    "compiled": compiled,
    "vivace": with_vivace,
    "nncf-ac": with_nncf,
    "torchao-pt2e": torchao_pt2e,
    "torchao-dynamic": torchao_dynamic,
    "olive": with_olive,
}
