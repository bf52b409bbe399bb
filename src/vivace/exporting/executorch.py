"""A .pte for ExecuTorch: phones and small devices, one image at a time."""

from __future__ import annotations

from pathlib import Path

import torch

from vivace.bundle import Bundle
from vivace.exporting.export_errors import exporting
from vivace.exporting.mobile import graph_of_one, needed, one_by_one
from vivace.runtimes.loading import Classifier
from vivace.runtimes.quiet import quiet

__all__ = ["load_file", "write_file"]


def write_file(bundle: Bundle, path: Path) -> None:
    """Write a .pte for ExecuTorch, its convolutions and matrix products by XNNPACK.

    Raises MissingExtra without executorch, ExportError if it can't take the network.
    """
    with quiet(), needed("executorch", "executorch", "an export to ExecuTorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    graph, image = graph_of_one(bundle)
    with quiet(), torch.no_grad(), exporting("executorch"):
        program = to_edge_transform_and_lower(torch.export.export(graph, (image,)), partitioner=[XnnpackPartitioner()])
        path.write_bytes(program.to_executorch().buffer)


def load_file(path: Path) -> Classifier:
    """What ExecuTorch computes from a .pte. Raises MissingExtra without executorch."""
    with quiet(), needed("executorch", "executorch", "a model for ExecuTorch"):
        from executorch.runtime import Runtime
    method = Runtime.get().load_program(path).load_method("forward")
    return one_by_one(lambda image_NHWC: method.execute([torch.from_numpy(image_NHWC)])[0].numpy())
