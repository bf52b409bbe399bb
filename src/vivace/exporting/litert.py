"""A .tflite for LiteRT: phones and small devices, one image at a time."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch

from vivace.bundle import Bundle
from vivace.exporting.export_errors import exporting
from vivace.exporting.mobile import graph_of_one, needed, one_by_one
from vivace.hardware import num_cpus
from vivace.runtimes.loading import Classifier
from vivace.runtimes.quiet import quiet

__all__ = ["load_file", "write_file"]


def write_file(bundle: Bundle, path: Path) -> None:
    """Write a .tflite for LiteRT.

    Raises MissingExtra without litert-torch, ExportError if it can't take the network.
    """
    with quiet(), needed("litert-torch", "litert", "an export to LiteRT"):
        import litert_torch
    graph, image = graph_of_one(bundle)
    # it tells its progress on stdout, where a command's result belongs
    with quiet(), contextlib.redirect_stdout(None), torch.no_grad(), exporting("litert"):
        litert_torch.convert(graph, (image,)).export(str(path))


def load_file(path: Path) -> Classifier:
    """What LiteRT computes from a .tflite. Raises MissingExtra without ai-edge-litert."""
    with quiet(), needed("ai-edge-litert", "litert", "a model for LiteRT"):
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(model_path=str(path), num_threads=num_cpus())
    interpreter.allocate_tensors()
    image, probs = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(image_NHWC: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(image, image_NHWC)
        interpreter.invoke()
        found: np.ndarray = interpreter.get_tensor(probs)
        return found

    return one_by_one(run)
