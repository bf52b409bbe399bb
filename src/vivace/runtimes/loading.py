"""A bundle opened on its runtime, whose module is imported then; and what is checked of graphs and their answers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vivace.cpus import forked_with, limit_threads
from vivace.errors import BundleError, ConfigError, VivaceError, first_line, nearest
from vivace.runtimes.table import PORTABLE, REFERENCE, RUNTIMES, Runtime, imported, listed, runnable

if TYPE_CHECKING:
    import torch

    from vivace.bundle import Bundle
    from vivace.hardware import Processor

__all__ = [
    "Classifier",
    "check_probs",
    "checked_graph",
    "graph_file",
    "load_reference",
    "load_runtime",
    "short_reason",
]

# of a softmax in bf16: its values have 8 bits, and what was rounded adds up
TOLERANCE = 0.02


class Classifier(Protocol):
    """images_NHWC, uint8 or float32, at the bundle's size → probs_NK float32."""

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray: ...


def load_runtime(name: str, bundle: Bundle, *, device: torch.device | Processor, precision: str) -> Classifier:
    """The classifier of a bundle on a runtime; those of graphs take a `Processor` as well as a torch.device.

    Raises ConfigError for an unknown name, a device or precision that the runtime lacks, or one that can't run in a
    forked process; BundleError for a graph that the runtime can't read; and what its `load` raises.
    """
    known = runnable()
    if name not in known:
        raise ConfigError(f"the runtime is unknown: got {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    row = RUNTIMES[name]
    _check_not_forked(row)
    _check_place(row, device.type, precision)
    # a graph's runtime needs no torch, and is told its threads itself
    if "torch" in sys.modules:
        limit_threads()
    module = imported(str(row.module))
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


def load_reference(bundle: Bundle) -> Classifier:
    """What other variants are compared with: the network in PyTorch, eager, float32, on the CPU.

    Of a network of the user's own whose code is not at hand it is the float32 graph, which was compared with PyTorch
    when it was written. Raises BundleError if there is none.
    """
    graph = None if bundle.has_code else bundle.reference_graph
    if graph is not None:
        classifier: Classifier = imported(str(RUNTIMES[PORTABLE].module)).load_graph(bundle, graph)
        return classifier
    import torch

    return load_runtime(REFERENCE, bundle, device=torch.device("cpu"), precision="fp32")


def _check_not_forked(row: Runtime) -> None:
    library = row.fork_unsafe_library
    if library and forked_with(library):
        raise ConfigError(
            f"{row.name} can't run in process {os.getpid()}: it was forked from one that had loaded {library}, and "
            "threads are not forked. Start workers with spawn: multiprocessing.get_context('spawn')."
        )


def _check_place(row: Runtime, device: str, precision: str) -> None:
    if device in row.devices and precision in row.precisions:
        return
    where = listed("a CPU" if name == "cpu" else name for name in row.devices)
    instead = "Use another precision" if row.name == REFERENCE else f"Use {REFERENCE}"
    raise ConfigError(
        f"{row.name} runs on {where} in {listed(row.precisions)}: got {device} and {precision}. {instead}."
    )


def graph_file(bundle: Bundle, name: str, runtime: str) -> Path:
    """The file of a bundle that holds the graph for a runtime, or a part of it.

    Raises ConfigError if it has none, BundleError if it exists but the manifest does not list it, or it is a link.
    """
    path = bundle.folder / name
    # hashed with the bundle: a file that was only put there is not taken
    if name in bundle.files:
        if path.is_symlink():
            raise BundleError(f"a file of the bundle is a link: {path}. Do not use it, or restore it from a copy.")
        return bundle.checked(name)
    if bundle.info.runtime == runtime:
        raise BundleError(
            f"the bundle computes by {runtime}, and bundle.json does not list {name}: {bundle.folder}. "
            "Do not use it, or restore it from a copy."
        )
    raise ConfigError(
        f"the bundle holds no graph for {runtime}: {bundle.folder}. "
        f"Make one: vivace export {bundle.folder} --to {runtime} --out FOLDER"
    )


def checked_graph(classify: Classifier, bundle: Bundle, path: Path) -> Classifier:
    """The classifier of an untrusted graph: it returns valid probs_NK or raises BundleError.

    A bundle's hashes are not signed: its graph may be any graph, and one line must say what is wrong with it. Raises
    ValueError for images of another shape or type than the bundle's.
    """
    size, channels, dtype = bundle.preprocess.size, bundle.preprocess.channels, bundle.preprocess.dtype

    def checked(images_NHWC: np.ndarray) -> np.ndarray:
        if images_NHWC.shape[1:] != (size, size, channels) or images_NHWC.dtype != dtype:
            raise ValueError(
                f"images must be {dtype} [N, {size}, {size}, {channels}]: got {images_NHWC.dtype} "
                f"{list(images_NHWC.shape)}"
            )
        try:
            probs_NK = classify(images_NHWC)
        except (VivaceError, MemoryError):
            raise
        except Exception as error:
            raise BundleError(
                f"the graph can't be run: {path} ({short_reason(error)}). Export it again, or give it smaller batches."
            ) from None
        expected = (len(images_NHWC), len(bundle.classes))
        if (probs_NK.shape, probs_NK.dtype) != (expected, "float32"):
            raise BundleError(
                f"the graph answers {list(probs_NK.shape)} for {list(expected)}, {probs_NK.dtype} for float32: {path}. "
                "Export it again."
            )
        check_probs(probs_NK, path, multi_label=bundle.info.multi_label)
        return probs_NK

    return checked


def check_probs(probs_NK: np.ndarray, path: Path, *, multi_label: bool = False) -> None:
    """Raise BundleError, which names the path, unless all are in [0, 1] and rows sum to 1, or some are not finite.

    As near as bf16 comes to it; float32 is within 1e-5. What overflows is not looked at: its cause is another one.
    multi_label: rows may have any sum.
    """
    sums_N = probs_NK.sum(1)
    inside = (probs_NK >= 0) & (probs_NK <= 1 + TOLERANCE / 10)
    sums_to_one = np.full(len(sums_N), True) if multi_label else abs(sums_N - 1) <= TOLERANCE
    if bool((inside.all(1) & sums_to_one | ~np.isfinite(probs_NK).all(1)).all()):
        return
    raise BundleError(
        f"the answers are no probabilities: {path} gives {probs_NK.min():.3g} to {probs_NK.max():.3g}, in rows that "
        f"sum to {sums_N.min():.3g} to {sums_N.max():.3g}. Do not use it, or make it again."
    )


def short_reason(error: Exception) -> str:
    """The last line of what a runtime says, 200 characters at most: there it names the cause, after where it was."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text if len(text) <= 200 else "…" + text[-199:]
