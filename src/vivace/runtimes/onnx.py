"""ONNX Runtime on a CPU: the graph that `vivace export --to onnx` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.bundle import Bundle
from vivace.errors import BundleError, ConfigError, MissingExtra, VivaceError
from vivace.hardware import num_cpus
from vivace.runtimes import INPUT, OUTPUT, Classifier, checked_graph, graph_file, short_reason
from vivace.runtimes.onnx_external import has_external_data

if TYPE_CHECKING:
    import torch

__all__ = ["GRAPH", "classifier_of", "load", "open_session"]

GRAPH = "model.onnx"
# of an int8 graph the arithmetic stands in the graph itself
PRECISIONS = ("fp32", "int8")


def load(bundle: Bundle, *, device: torch.device, precision: str = "fp32") -> Classifier:
    """A classifier: uint8 NHWC pixels at the bundle's size → probabilities, float32; preprocessing is in the graph.

    precision: that of the graph, fp32 or int8. Raises ConfigError for a GPU, another precision or a bundle without an
    ONNX graph; BundleError for a graph that can't be run; MissingExtra.
    """
    if device.type != "cpu" or precision not in PRECISIONS:
        raise ConfigError(f"onnx runs on a CPU in fp32 or int8: got {device.type} and {precision}. Use eager.")
    path = graph_file(bundle, GRAPH, "onnx")
    return checked_graph(classifier_of(path), bundle, path)


def classifier_of(path: Path) -> Classifier:
    """A classifier of a file that `vivace export --to onnx` wrote. Raises BundleError if it is none, MissingExtra."""
    try:
        graph = path.read_bytes()
        if has_external_data(graph):
            raise BundleError(f"the graph reads other files: {path}. Do not use it, or export it again.")
        session = open_session(graph)
        names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    except VivaceError:
        raise
    except Exception as error:
        # onnxruntime has a class of its own for each cause, and none for all
        raise BundleError(f"the graph can't be loaded: {path} ({short_reason(error)}). Export it again.") from None
    if names != [INPUT, OUTPUT]:
        raise BundleError(f"the graph has {names} for {[INPUT, OUTPUT]}: {path}. Export it again.")

    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        probs: np.ndarray = session.run([OUTPUT], {INPUT: np.ascontiguousarray(images_NHWC)})[0]
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
