"""An engine of TensorRT: a bundle compiled for an NVIDIA GPU, for that kind of GPU and this TensorRT alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivace.bundle import Bundle
from vivace.errors import ConfigError, ExportError, MissingExtra
from vivace.exporting.export_errors import exporting
from vivace.exporting.onnx import write_graph
from vivace.runtimes.loading import Classifier
from vivace.runtimes.onnx import GRAPH
from vivace.scratch import scratch_folder

__all__ = ["load_file", "write_file"]

# images in a call: any number up to the last, the middle one is what it is tuned for
BATCHES = (1, 8, 64)


def write_file(bundle: Bundle, path: Path) -> None:
    """Write an engine for the GPU of this machine, float32: "images", uint8 [N, size, size, channels] → "probs" [N, K].

    N up to 64. TF32 is off: its probabilities would differ by more than the tolerance.
    Raises MissingExtra without tensorrt or onnxscript, ConfigError without a GPU, ExportError if it can't take the
    network.
    """
    tensorrt = _library()
    with scratch_folder("engine") as folder:
        write_graph(bundle, Path(folder), float_first=True)
        graph = Path(folder, GRAPH).read_bytes()
    side, channels = bundle.preprocess.size, bundle.preprocess.channels
    with exporting("tensorrt"):
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        # of typed networks alone: the newest TensorRT has no others
        network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = tensorrt.OnnxParser(network, logger)
        if not parser.parse(graph):
            raise RuntimeError("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
        config = builder.create_builder_config()
        config.clear_flag(tensorrt.BuilderFlag.TF32)
        profile = builder.create_optimization_profile()
        profile.set_shape("images", *((count, side, side, channels) for count in BATCHES))
        config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise RuntimeError("no engine could be built")
        path.write_bytes(engine)


def load_file(path: Path) -> Classifier:
    """What TensorRT computes from an engine, on the GPU.

    Raises MissingExtra, ConfigError without a GPU, and ExportError if the engine is of another GPU or TensorRT.
    """
    tensorrt = _library()
    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ExportError(f"this engine is of another GPU or another TensorRT: {path}. Export again on this machine.")
    context = engine.create_execution_context()

    def run(images: torch.Tensor) -> torch.Tensor:
        context.set_input_shape("images", tuple(images.shape))
        probs = torch.empty(tuple(context.get_tensor_shape("probs")), device=images.device)
        context.set_tensor_address("images", images.data_ptr())
        context.set_tensor_address("probs", probs.data_ptr())
        stream = torch.cuda.current_stream()
        if not context.execute_async_v3(stream_handle=stream.cuda_stream):
            raise ExportError(f"TensorRT could not run {path}. Export again on this machine.")
        stream.synchronize()
        return probs.cpu()

    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        most = BATCHES[-1]
        parts = [torch.from_numpy(images_NHWC[i : i + most].copy()).cuda() for i in range(0, len(images_NHWC), most)]
        return np.concatenate([run(part).numpy() for part in parts])

    # the engine lives as long as the runtime that read it
    classify.runtime = runtime  # type: ignore[attr-defined]
    return classify


def _library() -> Any:
    """The module tensorrt, where there is a GPU to build for."""
    try:
        import tensorrt
    except ImportError:
        raise MissingExtra("tensorrt", "tensorrt", "an engine for TensorRT") from None
    if not torch.cuda.is_available():
        raise ConfigError(
            "an engine of TensorRT is built on the GPU that it is for: there is none here. Export to onnx, and build "
            "it there."
        )
    return tensorrt
