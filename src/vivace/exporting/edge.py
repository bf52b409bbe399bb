"""Exports for phones and small devices: ExecuTorch and LiteRT, a file each, and how each is run to be checked.

Both take one image at a time: images_NHWC uint8 [1, size, size, channels] → probs_NK float32 [1, num_classes].
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vivace.bundle import Bundle
from vivace.errors import MissingExtra
from vivace.exporting.foreign import exporting
from vivace.hardware import num_cpus
from vivace.runtimes import Classifier
from vivace.runtimes.graph import deployed_graph
from vivace.runtimes.quiet import quiet

__all__ = ["load_executorch", "load_litert", "write_executorch", "write_litert"]


class _Largest(nn.Module):
    """Global max-pooling as a reduction: the same numbers, by an operator that both libraries have."""

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return features_BCHW.amax((2, 3), keepdim=True)


def write_executorch(bundle: Bundle, path: Path) -> None:
    """Write a .pte for ExecuTorch, its convolutions and matrix products by XNNPACK.

    Raises MissingExtra without executorch, ExportError if it can't take the network.
    """
    with quiet(), _needed("executorch", "an export to ExecuTorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    graph, image = _graph_of_one(bundle)
    with quiet(), torch.no_grad(), exporting("executorch"):
        program = to_edge_transform_and_lower(torch.export.export(graph, (image,)), partitioner=[XnnpackPartitioner()])
        path.write_bytes(program.to_executorch().buffer)


def load_executorch(path: Path) -> Classifier:
    """What ExecuTorch computes from a .pte. Raises MissingExtra without executorch."""
    with quiet(), _needed("executorch", "a model for ExecuTorch"):
        from executorch.runtime import Runtime
    method = Runtime.get().load_program(path).load_method("forward")
    return _one_by_one(lambda image_NHWC: method.execute([torch.from_numpy(image_NHWC)])[0].numpy())


def write_litert(bundle: Bundle, path: Path) -> None:
    """Write a .tflite for LiteRT.

    Raises MissingExtra without litert-torch, ExportError if it can't take the network.
    """
    with quiet(), _needed("litert-torch", "an export to LiteRT"):
        import litert_torch
    graph, image = _graph_of_one(bundle)
    # it tells its progress on stdout, where a command's result belongs
    with quiet(), contextlib.redirect_stdout(None), torch.no_grad(), exporting("litert"):
        litert_torch.convert(graph, (image,)).export(str(path))


def load_litert(path: Path) -> Classifier:
    """What LiteRT computes from a .tflite. Raises MissingExtra without ai-edge-litert."""
    with quiet(), _needed("ai-edge-litert", "a model for LiteRT"):
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(model_path=str(path), num_threads=num_cpus())
    interpreter.allocate_tensors()
    image, probs = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(image_NHWC: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(image, image_NHWC)
        interpreter.invoke()
        found: np.ndarray = interpreter.get_tensor(probs)
        return found

    return _one_by_one(run)


def _graph_of_one(bundle: Bundle) -> tuple[nn.Module, Tensor]:
    """The deployed graph, and a blank image to trace it with."""
    graph, example = deployed_graph(bundle)
    for parent in list(graph.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveMaxPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, _Largest())
    return graph, example[:1]


def _one_by_one(run: Callable[[np.ndarray], np.ndarray]) -> Classifier:
    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        # copied: a library's answer may lie where the next one will
        return np.concatenate([np.array(run(np.array(image_HWC)[None])) for image_HWC in images_NHWC])

    return classify


@contextlib.contextmanager
def _needed(library: str, purpose: str) -> Iterator[None]:
    extra = "executorch" if library == "executorch" else "litert"
    try:
        yield
    except ImportError:
        raise MissingExtra(library, extra, purpose) from None
