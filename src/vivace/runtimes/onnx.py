"""ONNX Runtime on a CPU: the graph that `vivace export --to onnx` wrote."""

from __future__ import annotations

import contextlib
import functools
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.bundle import Bundle
from vivace.errors import BundleError, MissingExtra
from vivace.files import read_regular
from vivace.hardware import Processor, num_cpus
from vivace.runtimes.loading import Classifier, checked_graph, graph_file, short_reason
from vivace.runtimes.onnx_bytes import check_onnx
from vivace.runtimes.patience import patience, within
from vivace.runtimes.table import INPUT, OUTPUT, RUNTIMES

if TYPE_CHECKING:
    import torch

__all__ = ["GRAPH", "classifier_of", "load", "load_graph", "open_session"]

ROW = RUNTIMES["onnx"]
(GRAPH,) = ROW.graph_files
# for weights and what is computed. Whoever needs more has set batches that are no faster on a CPU than smaller ones
MAX_MEMORY_BYTES = 4 * 2**30
# a protocol buffer has no more
MAX_GRAPH_BYTES = 2 * 2**30


def load(bundle: Bundle, *, device: torch.device | Processor, precision: str = "fp32") -> Classifier:
    """A classifier: uint8 NHWC pixels at the bundle's size → probabilities, float32; preprocessing is in the graph.

    precision: that of the graph, fp32 or int8. Raises ConfigError for a bundle without an ONNX graph; BundleError for a
    graph that can't be run; MissingExtra.
    """
    return load_graph(bundle, GRAPH)


def load_graph(bundle: Bundle, name: str) -> Classifier:
    """The classifier of one of a bundle's ONNX graphs, as `load` gives it. name: of its file."""
    path = graph_file(bundle, name, ROW.name)
    return checked_graph(classifier_of(path), bundle, path)


def classifier_of(path: Path) -> Classifier:
    """A classifier of a file that `vivace export --to onnx` wrote. Raises BundleError if it is none, MissingExtra."""
    session, new_options = open_session(path), _library().RunOptions
    names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    if names != [INPUT, OUTPUT]:
        raise BundleError(f"the graph has {names} for {[INPUT, OUTPUT]}: {path}. Export it again.")

    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        options = new_options()
        with within(patience(len(images_NHWC)), partial(setattr, options, "terminate", True), f"the graph {path}"):
            probs: np.ndarray = session.run([OUTPUT], {INPUT: np.ascontiguousarray(images_NHWC)}, options)[0]
        return probs

    return classify


def open_session(graph: Path | bytes, *, profile_prefix: str | None = None) -> Any:
    """An onnxruntime.InferenceSession of a graph, a file or what one holds, on all processors.

    profile_prefix: it writes what it ran beside that.

    Raises BundleError for a graph that may do more than compute (see `onnx_bytes`) or can't be loaded, MissingExtra.
    """
    onnxruntime = _library()
    model = _checked(graph)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cpus()
    # what fails it also raises, and it warns of initialisers that it removes
    options.log_severity_level = 4
    if profile_prefix is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile_prefix
    _limit_memory(onnxruntime)
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # should a graph that reads other files get so far: no folder, so nothing is below it
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        # computing what is constant while a graph is loaded can't be stopped, whereas a call can be
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
        )
    except MemoryError:
        raise
    except Exception as error:
        # onnxruntime has a class of its own for each cause, and none for all
        raise BundleError(
            f"the graph can't be loaded: {_name(graph)} ({short_reason(error)}). Export it again."
        ) from None


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "accelerate", "the runtime onnx") from None
    return onnxruntime


def _checked(graph: Path | bytes) -> bytes:
    try:
        # read once: what is checked is what is run
        model = graph if isinstance(graph, bytes) else read_regular(graph.resolve(), MAX_GRAPH_BYTES)
        check_onnx(model)
    except OSError as error:
        raise BundleError(f"the graph can't be read: {_name(graph)} ({error.strerror}). Export it again.") from None
    except ValueError as error:
        raise BundleError(
            f"the graph is refused: {_name(graph)} ({error}). Do not use it, or export it again."
        ) from None
    return model


def _name(graph: Path | bytes) -> str:
    return str(graph) if isinstance(graph, Path) else "a graph in memory"


@functools.cache
def _limit_memory(onnxruntime: Any) -> None:
    """Let all graphs of this process have MAX_MEMORY_BYTES together: a tiny one may ask for any amount."""
    kind = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # the rest is as it is by default
    keys = ("arena_extend_strategy", "initial_chunk_size_bytes", "max_dead_bytes_per_chunk")
    arena = onnxruntime.OrtArenaCfg({"max_mem": MAX_MEMORY_BYTES, **dict.fromkeys(keys, -1)})
    # a program that vivace is a part of may have set a limit of its own
    with contextlib.suppress(Exception):
        onnxruntime.create_and_register_allocator(kind, arena)
