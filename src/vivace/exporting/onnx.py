"""The graph of a bundle as ONNX, for ONNX Runtime and for other programs that read it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from vivace.bundle import Bundle
from vivace.errors import MissingExtra
from vivace.exporting.export_errors import exporting
from vivace.exporting.labels import description
from vivace.runtimes.graph import DYNAMIC_SHAPES, deployed_graph
from vivace.runtimes.loading import Classifier
from vivace.runtimes.onnx import GRAPH, classifier_of, open_session
from vivace.runtimes.quiet import quiet
from vivace.runtimes.table import INPUT, OUTPUT

__all__ = ["copy_labelled", "load_file", "write_file", "write_graph"]

# of ONNX: what runtimes of the last two years read
OPSET = 20


class _FloatFirst(nn.Module):
    """A deployed graph whose first operation turns pixels into float32."""

    def __init__(self, deployed: nn.Module) -> None:
        super().__init__()
        self.deployed = deployed

    def forward(self, images_NHWC: Tensor) -> Tensor:
        probs_NK: Tensor = self.deployed(images_NHWC.float())
        return probs_NK


def write_graph(bundle: Bundle, folder: Path, *, float_first: bool = False) -> None:
    """Write ONNX: "images" uint8 [N, size, size, channels] → "probs" [N, K].

    float_first: for runtimes that do nothing else with bytes than turn them into float; others do it later, and faster.
    Of a network of the user's own whose code is not at hand the graph that stands for it is copied.
    Raises MissingExtra, ExportError.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtra("onnxscript", "accelerate", "an export to ONNX") from None
    if bundle.reference_graph is not None and not bundle.has_code and not float_first:
        _copy(bundle, bundle.reference_graph, folder / GRAPH)
        return
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
        program.save(folder / GRAPH, external_data=False)


def write_file(bundle: Bundle, path: Path) -> None:
    """Write the graph to `path`, as `write_graph` does."""
    write_graph(bundle, path.parent)


def load_file(path: Path) -> Classifier:
    """What ONNX Runtime computes from a file. Raises BundleError, MissingExtra."""
    return classifier_of(path)


def copy_labelled(bundle: Bundle, folder: Path) -> tuple[str, str]:
    """Copy the graph of a bundle into `folder`, with its description; the names of input and output in the copy."""
    written = folder / GRAPH
    _copy(bundle, GRAPH, written)
    session = open_session(written)
    return session.get_inputs()[0].name, session.get_outputs()[0].name


def _copy(bundle: Bundle, name: str, written: Path) -> None:
    """Copy one of a bundle's graphs, with the bundle's description."""
    shutil.copyfile(bundle.checked(name), written)
    if not description(bundle).items() <= open_session(written).get_modelmeta().custom_metadata_map.items():
        import onnx

        model = onnx.load(written, load_external_data=False)
        known = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, known | description(bundle))
        written.write_bytes(model.SerializeToString())
