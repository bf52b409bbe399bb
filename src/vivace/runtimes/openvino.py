"""OpenVINO on a CPU: the graph that `vivace export --to openvino` wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vivace.bundle import Bundle
from vivace.errors import ConfigError, MissingExtra
from vivace.hardware import num_cpus
from vivace.runtimes import Classifier, graph_file

if TYPE_CHECKING:
    import torch

__all__ = ["GRAPH", "load"]

GRAPH = "model.xml"
# of an int8 graph this is the arithmetic of what was not quantized
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def load(bundle: Bundle, *, device: torch.device, precision: str = "fp32") -> Classifier:
    """A classifier: uint8 NHWC pixels at the bundle's size → probabilities, float32; preprocessing is in the graph.

    precision: fp32 or bf16, or int8 for a graph that was quantized. Raises ConfigError for a GPU, another precision or
    a bundle without an OpenVINO graph; MissingExtra.
    """
    if device.type != "cpu" or precision not in HINTS:
        raise ConfigError(
            f"openvino runs on a CPU in fp32, bf16 or int8: got {device.type} and {precision}. Use eager."
        )
    path = graph_file(bundle, GRAPH, "openvino")
    try:
        import openvino
    except ImportError:
        raise MissingExtra("openvino", "accelerate", "the runtime openvino") from None
    settings = {
        # left to itself it takes bf16 where the processor has it, whatever the bundle says
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": num_cpus(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        # copied: the next call writes its answer to the same place
        probs: np.ndarray = np.array(compiled(np.ascontiguousarray(images_NHWC))[0])
        return probs

    return classify
