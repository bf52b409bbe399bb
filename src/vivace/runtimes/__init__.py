"""Runtimes: what computes a bundle's probabilities. One file each, imported when it is asked for; one table here."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vivace.cpus import limit_threads
from vivace.errors import BundleError, ConfigError, VivaceError, first_line, nearest

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vivace.bundle import Bundle

__all__ = ["RUNTIMES", "Classifier", "graph_file", "is_quantized", "load_runtime"]

# name → module with `load(bundle, *, device, precision) -> Classifier`
RUNTIMES = {
    "eager": "vivace.runtimes.eager",
    "inductor": "vivace.runtimes.inductor",
    "aoti": "vivace.runtimes.aoti",
    "onnx": "vivace.runtimes.onnx",
    "openvino": "vivace.runtimes.openvino",
}


class Classifier(Protocol):
    """images_NHWC uint8 at the bundle's size → probs_NK float32."""

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray: ...


def load_runtime(name: str, bundle: Bundle, *, device: torch.device, precision: str) -> Classifier:
    """The classifier of a bundle on a runtime.

    Raises ConfigError for an unknown name, BundleError for a graph that the runtime can't read, and what its `load`
    raises.
    """
    if name not in RUNTIMES:
        raise ConfigError(
            f"the runtime is unknown: got {name!r}.{nearest(name, RUNTIMES)} Known: {', '.join(RUNTIMES)}."
        )
    # a graph's runtime needs no torch, and is told its threads itself
    if "torch" in sys.modules:
        limit_threads()
    module = import_module(RUNTIMES[name])
    try:
        classifier: Classifier = module.load(bundle, device=device, precision=precision)
    except (VivaceError, MemoryError):
        raise
    except Exception as error:
        # libraries in C++ have errors of their own for files that are none of theirs
        raise BundleError(
            f"{name} can't run what is in {bundle.folder}: {type(error).__name__}: {first_line(error)}. "
            "Make the bundle again."
        ) from error
    return classifier


def is_quantized(precision: str) -> bool:
    """Whether a form in this precision multiplies 8-bit integers: "int8", or "int8+bf16" with bf16 for the rest."""
    return precision.startswith("int8")


def graph_file(bundle: Bundle, name: str, runtime: str) -> Path:
    """The file of a bundle that holds the graph for a runtime. Raises ConfigError if it has none."""
    # hashed with the bundle: a file that was only put there is not taken
    if name not in bundle.files:
        raise ConfigError(
            f"the bundle holds no graph for {runtime}: {bundle.folder}. "
            f"Make one: vivace export {bundle.folder} --to {runtime} --out FOLDER"
        )
    return bundle.folder / name
