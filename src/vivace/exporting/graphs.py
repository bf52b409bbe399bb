"""A bundle's graph as PyTorch traces it, from which others are made: raw pixels in, probabilities out, float32."""

from __future__ import annotations

from typing import Any

import torch

from vivace.bundle import Bundle
from vivace.runtimes.graph import DYNAMIC_SHAPES, deployed_graph

__all__ = ["traced"]


def traced(bundle: Bundle) -> Any:
    """The deployed graph as a torch.export.ExportedProgram for any number of images."""
    graph, example = deployed_graph(bundle)
    return torch.export.export(graph, (example,), dynamic_shapes=DYNAMIC_SHAPES)
