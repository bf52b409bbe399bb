"""OpenVINO on a CPU: the graph that `vivace export --to openvino` wrote."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.bundle import Bundle
from vivace.errors import ConfigError, MissingExtra
from vivace.hardware import num_cpus
from vivace.runtimes import Classifier, graph_file

if TYPE_CHECKING:
    import torch

__all__ = ["GRAPH", "compile_graph", "library", "load", "without_reports"]

GRAPH = "model.xml"
# of an int8 graph this is the arithmetic of what was not quantized
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "int8+bf16": "bf16"}
# key of what takes batches of any size
ANY = 0
REPORTER = "openvino_telemetry"


def load(bundle: Bundle, *, device: torch.device, precision: str = "fp32") -> Classifier:
    """A classifier: uint8 NHWC pixels at the bundle's size → probabilities, float32; preprocessing is in the graph.

    precision: fp32 or bf16; for a graph that was quantized int8, or int8+bf16, which computes the rest in bf16. Raises
    ConfigError for a GPU, another precision or a bundle without an OpenVINO graph; MissingExtra.
    """
    if device.type != "cpu" or precision not in HINTS:
        raise ConfigError(
            f"openvino runs on a CPU in {', '.join(HINTS)}: got {device.type} and {precision}. Use eager."
        )
    model = library().Core().read_model(graph_file(bundle, GRAPH, "openvino"))
    compiled: dict[int, Any] = {}

    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        count = len(images_NHWC)
        if not compiled:
            # most calls are of one size: for a size that it knows OpenVINO's program is up to a third faster
            compiled[count] = compile_graph(model, precision, batch_size=count)
        if count not in compiled and ANY not in compiled:
            compiled[ANY] = compile_graph(model, precision)
        run = compiled.get(count) or compiled[ANY]
        # copied: the next call writes its answer to the same place
        probs: np.ndarray = np.array(run(np.ascontiguousarray(images_NHWC))[0])
        return probs

    return classify


def compile_graph(graph: Any, precision: str, *, batch_size: int | None = None, profiling: bool = False) -> Any:
    """An openvino.CompiledModel of a graph, a file or an openvino.Model, on all processors.

    batch_size: the only one that it takes; None: any. profiling: it counts the time of each layer.
    Raises MissingExtra.
    """
    settings = {
        # left to itself it takes bf16 where the processor has it, whatever the bundle says
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": num_cpus(),
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": profiling,
    }
    core = library().Core()
    if batch_size is not None:
        # a copy: the graph itself stays as it is
        graph = core.read_model(graph) if isinstance(graph, str | os.PathLike) else graph.clone()
        _, *image = graph.input().get_partial_shape()
        graph.reshape([batch_size, *image])
    return core.compile_model(graph, "CPU", settings)


def library(purpose: str = "the runtime openvino") -> Any:
    """The module openvino, imported so that it reports nothing. Raises MissingExtra, which names the purpose."""
    try:
        with without_reports():
            import openvino
    except ImportError:
        raise MissingExtra("openvino", "accelerate", purpose) from None
    return openvino


@contextlib.contextmanager
def without_reports() -> Iterator[None]:
    """What is imported meanwhile can't report its use to its makers, nor keep a number for this user.

    OpenVINO and NNCF do both by default, as they are imported and at every conversion. Where the library that sends
    for them is not installed they go on without it, for as long as the process lives: they are told that it is not.
    """
    absent: Any = None
    before = sys.modules.get(REPORTER)
    sys.modules[REPORTER] = absent
    try:
        yield
    finally:
        del sys.modules[REPORTER]
        if before is not None:
            sys.modules[REPORTER] = before
