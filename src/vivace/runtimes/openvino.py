"""OpenVINO on a CPU: the graph that `vivace export --to openvino` wrote."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.bundle import Bundle
from vivace.errors import BundleError
from vivace.hardware import Processor, num_cpus
from vivace.libraries.openvino import core
from vivace.runtimes.loading import Classifier, checked_graph, graph_file, short_reason
from vivace.runtimes.openvino_graph import check_ir, check_sizes
from vivace.runtimes.patience import patience, within
from vivace.runtimes.table import RUNTIMES

if TYPE_CHECKING:
    import torch

__all__ = [
    "GRAPH",
    "QUANTIZED",
    "WEIGHTS",
    "classifier_of",
    "compile_graph",
    "load",
    "read_graph",
    "size_for",
]

ROW = RUNTIMES["openvino"]
GRAPH, WEIGHTS = ROW.graph_files
# operations of a graph for whose sake NNCF quantizes
QUANTIZED = (
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
)


def load(bundle: Bundle, *, device: torch.device | Processor, precision: str = "fp32") -> Classifier:
    """A classifier: uint8 NHWC pixels at the bundle's size → probabilities, float32; preprocessing is in the graph.

    precision: fp32 or bf16; for a graph that was quantized int8, or int8+bf16, which computes the rest in bf16. Raises
    ConfigError for a bundle without an OpenVINO graph; BundleError for one that can't be run; MissingExtra.
    """
    # named apart: left to itself OpenVINO takes any file beside the graph for its weights
    graph, weights = (graph_file(bundle, name, ROW.name) for name in (GRAPH, WEIGHTS))
    return checked_graph(classifier_of(graph, weights, precision), bundle, graph)


def classifier_of(graph: Path, weights: Path, precision: str) -> Classifier:
    """A classifier of the files that `vivace export --to openvino` wrote.

    Raises BundleError if they are none, MissingExtra.
    """
    programs: dict[int, _Program] = {}
    compiling = threading.Lock()
    model = read_graph(graph, weights)
    if (len(model.inputs), len(model.outputs)) != (1, 1):
        raise BundleError(
            f"the graph has {len(model.inputs)} inputs and {len(model.outputs)} outputs, one of each is expected: "
            f"{graph}. Export it again."
        )

    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        # which programs there are is looked at and changed by one thread at a time
        with compiling:
            size = size_for(len(images_NHWC), programs)
            if size not in programs:
                programs[size] = _Program(compile_graph(model, precision, batch_size=size))
            program = programs[size]
        return program(images_NHWC)

    return classify


def read_graph(graph: Path, weights: Path | None = None) -> Any:
    """The openvino.Model of a graph's file; weights: by default those beside it, of its name.

    Raises BundleError for a graph that may do more than compute (see `openvino_graph`) or is none, MissingExtra.
    """
    runtime = core()
    check_ir(graph)
    try:
        return runtime.read_model(graph, weights if weights is not None else graph.with_suffix(".bin"))
    except Exception as error:
        # of each of its readers OpenVINO has other errors
        raise BundleError(f"the graph can't be loaded: {graph} ({short_reason(error)}). Export it again.") from None


class _Program:
    """A compiled graph for up to its batch size of images. Its tensors are allocated once: to create them in
    each call is slow for a small network. Calls wait for each other."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._pixels: np.ndarray = self._request.get_input_tensor().data
        self._probs: np.ndarray = self._request.get_output_tensor().data
        self._busy = threading.Lock()
        self._ended_once = False

    def _first(self, num_images: int) -> None:
        """A call that can be stopped, which costs another thread's wake-up: no size depends on the pixels, and so the
        next ones take as long."""
        with within(patience(num_images), self._request.cancel, "the graph"):
            self._request.start_async()
            self._request.wait()
        self._ended_once = True

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray:
        """images_NHWC uint8 → probs_NK float32, as many as it was compiled for at most."""
        with self._busy:
            # the rest of the batch holds earlier pixels: its probabilities are ignored
            self._pixels[: len(images_NHWC)] = images_NHWC
            if self._ended_once:
                self._request.infer()
            else:
                self._first(len(images_NHWC))
            return self._probs[: len(images_NHWC)].copy()


def size_for(count: int, compiled: Collection[int]) -> int:
    """The batch size in which `count` images are computed, given those that programs exist for; the rest is unused.

    For a size that it knows OpenVINO's program is up to a third faster, and its programs for any size crash in int8 on
    small images with AMX (ultralytics/ultralytics#25898). Most calls are of one size: the first gets a
    program of its own; others share one for each power of two.
    """
    if not compiled or count in compiled:
        return count
    power = 1 << (count - 1).bit_length()
    return min((size for size in compiled if count <= size <= power), default=power)


def compile_graph(graph: Any, precision: str, *, batch_size: int, profiling: bool = False) -> Any:
    """An openvino.CompiledModel of a graph, a file or an openvino.Model, on all processors.

    batch_size: the only one that it takes. profiling: it counts the time of each layer. Raises BundleError for tensors
    too large to be computed, MissingExtra.
    """
    settings = {
        **ROW.settings[precision],
        "INFERENCE_NUM_THREADS": num_cpus(),
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": profiling,
    }
    # a copy: the graph itself stays as it is
    graph = read_graph(Path(graph)) if isinstance(graph, str | os.PathLike) else graph.clone()
    _, *image = graph.input().get_partial_shape()
    graph.reshape([batch_size, *image])
    check_sizes(graph)
    return core().compile_model(graph, "CPU", settings)
