"""The graph of a bundle for another runtime: raw pixels in, probabilities out, any number of images, float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivace.bundle import Bundle
from vivace.errors import ExportError, MissingExtra
from vivace.exporting.foreign import exporting
from vivace.exporting.labels import description, label_openvino
from vivace.runtimes import INPUT, OUTPUT
from vivace.runtimes.graph import DYNAMIC_SHAPES, deployed_graph
from vivace.runtimes.onnx import GRAPH as ONNX_GRAPH
from vivace.runtimes.openvino import GRAPH as OPENVINO_GRAPH
from vivace.runtimes.openvino import library
from vivace.runtimes.quiet import quiet
from vivace.scratch import scratch_folder

__all__ = ["GRAPH_WRITERS", "traced", "write_onnx", "write_openvino"]

# of ONNX: what runtimes of the last two years read
OPSET = 20


def traced(bundle: Bundle) -> Any:
    """The deployed graph as a torch.export.ExportedProgram for any number of images."""
    graph, example = deployed_graph(bundle)
    return torch.export.export(graph, (example,), dynamic_shapes=DYNAMIC_SHAPES)


class _FloatFirst(nn.Module):
    """A deployed graph whose first operation turns pixels into float32."""

    def __init__(self, deployed: nn.Module) -> None:
        super().__init__()
        self.deployed = deployed

    def forward(self, images_NHWC: Tensor) -> Tensor:
        probs_NK: Tensor = self.deployed(images_NHWC.float())
        return probs_NK


def write_onnx(bundle: Bundle, folder: Path, *, float_first: bool = False) -> None:
    """Write ONNX: "images" uint8 [N, size, size, channels] → "probs" [N, K].

    float_first: for runtimes that do nothing else with bytes than turn them into float; others do it later, and faster.
    Raises MissingExtra, ExportError.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtra("onnxscript", "accelerate", "an export to ONNX") from None
    graph, example = deployed_graph(bundle)
    with quiet(), exporting("onnx"):
        program = torch.onnx.export(
            _FloatFirst(graph) if float_first else graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=DYNAMIC_SHAPES,
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props.update(description(bundle))
        program.save(folder / ONNX_GRAPH, external_data=False)


def write_openvino(bundle: Bundle, folder: Path) -> None:
    """Write the files of an OpenVINO graph, only its batch open. Raises MissingExtra, ExportError.

    What OpenVINO can't read of a PyTorch program, such as positions that are interpolated, it may read of ONNX.
    """
    openvino = library("an export to OpenVINO")
    try:
        with quiet(), exporting("openvino"):
            model = openvino.convert_model(traced(bundle))
    except ExportError as error:
        model = _by_onnx(bundle, openvino, error)
    with quiet(), exporting("openvino"):
        # the converter leaves every side open, and of open sides OpenVINO fuses less
        side = bundle.preprocess.size
        model.reshape([-1, side, side, bundle.preprocess.channels])
        label_openvino(model, bundle)
        # float32 as the weights are: a smaller file is a step of its own, with its own check
        openvino.save_model(model, folder / OPENVINO_GRAPH, compress_to_fp16=False)


def _by_onnx(bundle: Bundle, openvino: Any, first: ExportError) -> Any:
    """OpenVINO's model of the bundle as ONNX. Raises `first`, which tells more, where that way is closed too."""
    try:
        with scratch_folder("export") as folder, quiet(), exporting("openvino"):
            write_onnx(bundle, folder)
            return openvino.convert_model(str(folder / ONNX_GRAPH))
    except (ExportError, MissingExtra):
        raise first from None


# runtime → writes its graph, float32, into a folder
GRAPH_WRITERS: dict[str, Callable[[Bundle, Path], None]] = {"onnx": write_onnx, "openvino": write_openvino}
