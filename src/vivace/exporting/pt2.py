"""A PyTorch program, as torch.export.load reads it: no runtime of ours, but what PyTorch itself deploys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vivace.bundle import Bundle
from vivace.exporting.export_errors import exporting
from vivace.exporting.graphs import traced
from vivace.runtimes.loading import Classifier
from vivace.runtimes.quiet import quiet

__all__ = ["classifier_of", "load_file", "write_file"]


def write_file(bundle: Bundle, path: Path) -> None:
    """Write the program to `path`. Raises ExportError."""
    with quiet(), exporting("pt2"):
        torch.export.save(traced(bundle), path)


def load_file(path: Path) -> Classifier:
    """Of a file that was written here a moment ago: of a foreign one it would trust a pickle."""
    with quiet():
        return classifier_of(torch.export.load(path).module())


def classifier_of(program: Callable[[torch.Tensor], torch.Tensor]) -> Classifier:
    """The classifier of a program in torch."""

    @torch.inference_mode()
    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        probs: np.ndarray = program(torch.from_numpy(images_NHWC.copy())).numpy()
        return probs

    return classify
