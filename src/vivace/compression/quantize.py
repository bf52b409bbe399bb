"""Post-training quantization to int8, by each runtime's own quantizer, calibrated on images.

Shapes: images_NHWC uint8 at the bundle's size. Quantized are the weights of convolutions and linear layers, per output
channel, and the activations between them, per tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vivace.bundle import Bundle
from vivace.errors import MissingExtra
from vivace.libraries.nncf import load_nncf, without_bars
from vivace.libraries.openvino import core, library
from vivace.libraries.signal_stack import own_signal_stack
from vivace.runtimes.int8 import observed_graph, save_ranges
from vivace.runtimes.onnx import GRAPH as ONNX_GRAPH
from vivace.runtimes.openvino import GRAPH as OPENVINO_GRAPH
from vivace.runtimes.quiet import quiet

__all__ = [
    "PRODUCTS",
    "Int8Job",
    "has_attention",
    "inductor_int8",
    "onnx_int8",
    "openvino_int8",
    "prepare_onnx",
    "quantize_inductor",
    "quantize_onnx",
    "quantize_openvino",
]

# batch size for measuring ranges
CALIBRATION_BATCH = 16
# ONNX operators that are quantized for their own sake
PRODUCTS = ("Conv", "MatMul", "Gemm")


def has_attention(model: nn.Module) -> bool:
    """Whether a module of the network is attention with heads; gates of channels, also called attention, have none."""
    return any(
        isinstance(module, nn.MultiheadAttention) or isinstance(getattr(module, "num_heads", None), int)
        for module in model.modules()
    )


def quantize_openvino(
    source: Path, folder: Path, images_NHWC: np.ndarray, *, transformer: bool = False, asymmetric: bool = False
) -> None:
    """Write an int8 version of the OpenVINO graph in `source` into `folder`, with NNCF.

    transformer: use NNCF's scheme for attention. asymmetric: activations with negative values get a zero point, which
    halves the step size after SiLU or GELU and makes some layers slower (docs/guide.md has measurements).
    Raises MissingExtra without nncf.
    """
    openvino, nncf = library("int8 for OpenVINO"), load_nncf()
    model = core("int8 for OpenVINO").read_model(source / OPENVINO_GRAPH)
    presets = nncf.QuantizationPreset
    dataset = nncf.Dataset([images_NHWC[i : i + 1] for i in range(len(images_NHWC))])
    # NNCF runs OpenVINO itself
    with quiet(), without_bars(), own_signal_stack():
        quantized = nncf.quantize(
            model,
            dataset,
            preset=presets.MIXED if asymmetric else presets.PERFORMANCE,
            target_device=nncf.TargetDevice.CPU,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            subset_size=len(images_NHWC),
            fast_bias_correction=True,
        )
    openvino.save_model(quantized, folder / OPENVINO_GRAPH, compress_to_fp16=False)


def quantize_onnx(source: Path, folder: Path, images_NHWC: np.ndarray) -> None:
    """Write an int8 version of the ONNX graph in `source` into `folder`, with ONNX Runtime: QDQ nodes, static ranges.

    Raises MissingExtra without onnxruntime or onnx.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    except ImportError:
        raise MissingExtra("onnxruntime and onnx", "accelerate", "int8 for ONNX Runtime") from None

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter([{"images": images_NHWC[i : i + 1]} for i in range(len(images_NHWC))])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    prepared = folder / "prepared.onnx"
    try:
        prepare_onnx(source / ONNX_GRAPH, prepared)
        nodes = onnx.load(prepared, load_external_data=False).graph.node
        products = [index for index, node in enumerate(nodes) if node.op_type in PRODUCTS]
        with quiet():
            quantize_static(
                str(prepared),
                str(folder / ONNX_GRAPH),
                Reader(),
                op_types_to_quantize=[*PRODUCTS, "Add", "MaxPool", "GlobalAveragePool"],
                # the normalization of pixels stays in float: its steps would round them three times
                nodes_to_exclude=[node.name for node in nodes[: products[0]]] if products else None,
                per_channel=True,
                # VNNI instructions multiply unsigned activations by signed weights
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )
    finally:
        prepared.unlink(missing_ok=True)


def prepare_onnx(source: Path, prepared: Path) -> None:
    """Write the ONNX graph `source`, prepared for quantization, into the file `prepared`: shapes inferred, folded.

    Raises MissingExtra without onnxruntime or onnx.
    """
    try:
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        raise MissingExtra("onnxruntime and onnx", "accelerate", "int8 for ONNX Runtime") from None
    with quiet():
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)


def quantize_inductor(bundle: Bundle, folder: Path, images_NHWC: np.ndarray) -> None:
    """Write the ranges of an int8 variant for Inductor and AOTInductor into `folder`, with torchao: static, per tensor.

    Raises MissingExtra without torchao.
    """
    graph, _ = observed_graph(bundle)
    with quiet(), torch.no_grad():
        for start in range(0, len(images_NHWC), CALIBRATION_BATCH):
            graph(torch.from_numpy(np.array(images_NHWC[start : start + CALIBRATION_BATCH])))
        save_ranges(graph, folder)


@dataclass(frozen=True, kw_only=True)
class Int8Job:
    """What a quantizer, which a row of `vivace.runtimes.table` names, is given beside the folder to fill."""

    bundle: Bundle
    graph: Path | None
    """Folder of the float32 graph; None for a runtime that takes the network itself."""
    images_NHWC: np.ndarray
    asymmetric: bool = False
    """Activations with a zero point where they have negative values, for a runtime that has both."""


def onnx_int8(job: Int8Job, folder: Path) -> None:
    """See `quantize_onnx`."""
    assert job.graph is not None
    quantize_onnx(job.graph, folder, job.images_NHWC)


def openvino_int8(job: Int8Job, folder: Path) -> None:
    """See `quantize_openvino`."""
    assert job.graph is not None
    transformer = has_attention(job.bundle.build_model()) if job.bundle.has_code else _graph_has_attention(job.graph)
    quantize_openvino(job.graph, folder, job.images_NHWC, transformer=transformer, asymmetric=job.asymmetric)


def _graph_has_attention(folder: Path) -> bool:
    """Whether an OpenVINO graph has a softmax beside that of its answers, as attention has."""
    model = core("int8 for OpenVINO").read_model(folder / OPENVINO_GRAPH)
    return sum(node.get_type_name() == "Softmax" for node in model.get_ops()) > 1


def inductor_int8(job: Int8Job, folder: Path) -> None:
    """See `quantize_inductor`."""
    quantize_inductor(job.bundle, folder, job.images_NHWC)
