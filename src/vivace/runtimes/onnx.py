"""ONNX Runtime on a CPU: the graph that `vivace export --to onnx` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.bundle import Bundle
from vivace.errors import ConfigError, MissingExtra
from vivace.hardware import num_cpus
from vivace.runtimes import Classifier, graph_file

if TYPE_CHECKING:
    import torch

__all__ = ["GRAPH", "load", "open_session"]

GRAPH = "model.onnx"
# of an int8 graph the arithmetic stands in the graph itself
PRECISIONS = ("fp32", "int8")


def load(bundle: Bundle, *, device: torch.device, precision: str = "fp32") -> Classifier:
    """A classifier: uint8 NHWC pixels at the bundle's size → probabilities, float32; preprocessing is in the graph.

    precision: that of the graph, fp32 or int8. Raises ConfigError for a GPU, another precision or a bundle without an
    ONNX graph; MissingExtra.
    """
    if device.type != "cpu" or precision not in PRECISIONS:
        raise ConfigError(f"onnx runs on a CPU in fp32 or int8: got {device.type} and {precision}. Use eager.")
    session = open_session(graph_file(bundle, GRAPH, "onnx"))

    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        probs: np.ndarray = session.run(["probs"], {"images": np.ascontiguousarray(images_NHWC)})[0]
        return probs

    return classify


def open_session(graph: Path | bytes, *, profile_prefix: str | None = None) -> Any:
    """An onnxruntime.InferenceSession of a graph, a file or what one holds, on all processors.

    profile_prefix: it writes what it ran beside that.

    Raises MissingExtra.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "accelerate", "the runtime onnx") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cpus()
    # errors only: it warns of initialisers that it removes
    options.log_severity_level = 3
    if profile_prefix is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile_prefix
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
