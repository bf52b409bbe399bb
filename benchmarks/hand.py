"""The manual baselines of `infer.py`: what a competent user writes from each library's documentation.

    python hand.py prepare EXCHANGE OUT --form "openvino int8" --batch 1
    python hand.py serve

Nothing of vivace is used but the network, out of the bundle. Every baseline gets normalized float32 images in memory,
in its best layout, and gives logits: normalization and layout are not counted against it, though they are counted for
vivace. Shapes are static, as OpenVINO and ONNX Runtime run them fastest.

Where the documentation leaves a choice:
- OpenVINO int8: `nncf.quantize` with its defaults on 300 images, and `model_type=TRANSFORMER` for attention; the
  precision of the rest is the runtime's choice, which is bf16 where the processor has it.
- ONNX Runtime int8: QDQ, signed activations and weights (its default), its own preprocessing before, weights per
  channel.
- torch.compile: with freezing, under no_grad; bf16 by autocast, eager and compiled.

Shapes: images_BCHW float32, normalised.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peers.inference import Exchange, Job, Loaded, program

if TYPE_CHECKING:
    import torch

__all__ = ["HAND_FORMS", "HandForm"]


@dataclass(frozen=True, kw_only=True)
class HandForm:
    """A manual way to run a network."""

    runtime: str
    """Which of vivace's runtimes is its counterpart."""
    precision: str
    load: Callable[[Job], Loaded]
    prepare: Callable[[Exchange, Path, int], None] | None = None
    needs: str = ""
    """The module that must be there."""


def network(exchange: Exchange) -> torch.nn.Module:
    """The plain network with its weights, in eval mode."""
    from vivace.bundle import load_bundle

    return load_bundle(exchange.facts["bundle"]).build_model()


def example(exchange: Exchange, batch: int) -> torch.Tensor:
    """images_BCHW, blank."""
    import torch

    return torch.zeros(batch, exchange.facts["channels"], exchange.facts["size"], exchange.facts["size"])


def in_torch(*, bf16: bool = False, channels_last: bool = False, compiled: bool = False) -> Callable[[Job], Loaded]:
    """PyTorch, eager or compiled."""

    def load(job: Job) -> Loaded:
        import torch

        torch.set_num_threads(job.threads)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = network(job.exchange).to(memory_format=layout)
        if compiled:
            import torch._inductor.config

            torch._inductor.config.freezing = True
            model = torch.compile(model)

        # freezing looks for no_grad
        @torch.no_grad()
        def classify(images_BCHW: torch.Tensor) -> np.ndarray:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                logits = model(images_BCHW)
            scores: np.ndarray = logits.float().numpy()
            return scores

        return Loaded(classify, lambda images: torch.from_numpy(images).contiguous(memory_format=layout))

    return load


def export_onnx(exchange: Exchange, path: Path, batch: int) -> None:
    """The network as ONNX, of one shape."""
    import torch

    torch.onnx.export(
        network(exchange),
        (example(exchange, batch),),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def export_program(exchange: Exchange, path: Path, batch: int) -> None:
    """The network as a torch.export program, for peers that start from PyTorch."""
    import torch

    torch.export.save(torch.export.export(network(exchange), (example(exchange, batch),)), path)


def prepare_onnx(exchange: Exchange, out: Path, batch: int) -> None:
    export_onnx(exchange, out / "model.onnx", batch)


def prepare_onnx_int8(exchange: Exchange, out: Path, batch: int) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = exchange.whole_batches("calibrate", batch)

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self._batches, None)
            return None if images is None else {"images": images}

    plain, ready = out / "plain.onnx", out / "ready.onnx"
    export_onnx(exchange, plain, batch)
    # its symbolic inference fails on what the new exporter of torch writes; shapes are static anyway
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    quantize_static(str(ready), str(out / "model.onnx"), Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    plain.unlink()
    ready.unlink()


def load_onnx(job: Job) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(job.model / "model.onnx", options, providers=["CPUExecutionProvider"])
    return Loaded(lambda images: session.run(None, {"images": images})[0])


def convert_openvino(exchange: Exchange, batch: int) -> Any:
    import openvino

    size, channels = exchange.facts["size"], exchange.facts["channels"]
    return openvino.convert_model(
        network(exchange), example_input=example(exchange, max(2, batch)), input=[batch, channels, size, size]
    )


def prepare_openvino(exchange: Exchange, out: Path, batch: int) -> None:
    import openvino

    openvino.save_model(convert_openvino(exchange, batch), out / "model.xml", compress_to_fp16=False)


def prepare_openvino_int8(exchange: Exchange, out: Path, batch: int) -> None:
    # it reports its use to its makers unless this is set
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import openvino

    # of any number of images, calibrated on single ones, and then of one shape
    images = list(exchange.batches("calibrate", 1))
    quantized = nncf.quantize(
        convert_openvino(exchange, -1),
        nncf.Dataset(images),
        model_type=nncf.ModelType.TRANSFORMER if exchange.facts["attention"] else None,
    )
    quantized.reshape([batch, *images[0].shape[1:]])
    openvino.save_model(quantized, out / "model.xml", compress_to_fp16=False)


def in_openvino(hint: str | None) -> Callable[[Job], Loaded]:
    """OpenVINO; hint: compute dtype for what is float32 in the graph; None: the runtime's choice."""

    def load(job: Job) -> Loaded:
        import openvino

        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads}
        if hint is not None:
            settings["INFERENCE_PRECISION_HINT"] = hint
        compiled = openvino.Core().compile_model(job.model / "model.xml", "CPU", settings)
        return Loaded(lambda images: compiled(images)[0])

    return load


HAND_FORMS: dict[str, HandForm] = {
    "eager fp32": HandForm(runtime="eager", precision="fp32", load=in_torch()),
    "eager fp32 channels_last": HandForm(runtime="eager", precision="fp32", load=in_torch(channels_last=True)),
    "eager bf16": HandForm(runtime="eager", precision="bf16", load=in_torch(bf16=True)),
    "eager bf16 channels_last": HandForm(
        runtime="eager", precision="bf16", load=in_torch(bf16=True, channels_last=True)
    ),
    "compile fp32": HandForm(runtime="inductor", precision="fp32", load=in_torch(compiled=True)),
    "compile bf16": HandForm(runtime="inductor", precision="bf16", load=in_torch(compiled=True, bf16=True)),
    "onnxruntime fp32": HandForm(
        runtime="onnx", precision="fp32", load=load_onnx, prepare=prepare_onnx, needs="onnxruntime"
    ),
    "onnxruntime int8": HandForm(
        runtime="onnx", precision="int8", load=load_onnx, prepare=prepare_onnx_int8, needs="onnxruntime"
    ),
    "openvino fp32": HandForm(
        runtime="openvino", precision="fp32", load=in_openvino("f32"), prepare=prepare_openvino, needs="openvino"
    ),
    "openvino bf16": HandForm(
        runtime="openvino", precision="bf16", load=in_openvino("bf16"), prepare=prepare_openvino, needs="openvino"
    ),
    "openvino int8": HandForm(
        runtime="openvino", precision="int8", load=in_openvino(None), prepare=prepare_openvino_int8, needs="nncf"
    ),
}
# what else `prepare` writes: the network for those who do not know vivace
EXPORTS: dict[str, Callable[[Exchange, Path, int], None]] = {
    "export onnx": lambda exchange, out, batch: export_onnx(exchange, exchange.graph(batch), batch),
    "export pt2": lambda exchange, out, batch: export_program(exchange, exchange.program(batch), batch),
}


def prepare(exchange: Exchange, out: Path, batch: int, form: str) -> Mapping[str, Any] | None:
    writer = EXPORTS.get(form) or HAND_FORMS[form].prepare
    if writer is not None:
        writer(exchange, out, batch)
    return None


def load(job: Job) -> Loaded:
    return HAND_FORMS[job.form].load(job)


if __name__ == "__main__":
    program(prepare, load, ("torch",))
