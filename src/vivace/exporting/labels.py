"""What a model file says of itself: its classes and its preprocessing, so that a copy without its folder still knows.

ONNX has them as metadata_props, OpenVINO as rt_info under "vivace"; each value is JSON in ASCII, which any class name
fits. Both name their tensors "images" and "probs".
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vivace.bundle import Bundle
from vivace.config import to_dict
from vivace.errors import ExportError
from vivace.runtimes import INPUT, OUTPUT
from vivace.runtimes.onnx import GRAPH as ONNX_GRAPH
from vivace.runtimes.onnx import open_session
from vivace.runtimes.openvino import GRAPH as OPENVINO_GRAPH
from vivace.runtimes.openvino import WEIGHTS as OPENVINO_WEIGHTS
from vivace.runtimes.openvino import library, read_graph

__all__ = ["copy_labelled", "description", "label_openvino"]

NAMESPACE = "vivace"
DESCRIBED = ("model", "classes", "preprocess", "input", "output")


def description(bundle: Bundle) -> dict[str, str]:
    """Key → JSON: model, classes in the order of the probabilities, preprocess, input and output."""
    size, channels = bundle.preprocess.size, bundle.preprocess.channels
    told = {
        "model": bundle.info.architecture.name,
        "classes": list(bundle.classes),
        "preprocess": to_dict(bundle.preprocess),
        "input": {"name": INPUT, "dtype": "uint8", "shape": ["N", size, size, channels]},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["N", len(bundle.classes)], "what": "probabilities"},
    }
    return {key: json.dumps(value, ensure_ascii=True) for key, value in told.items()}


def copy_labelled(bundle: Bundle, folder: Path) -> tuple[str, str]:
    """Copy the files of a bundle's graph into `folder`, with names and description even if an older vivace wrote it.

    Returns the names of the input and the output, as they are in the files that were written.
    """
    return (_copy_onnx if bundle.info.runtime == "onnx" else _copy_openvino)(bundle, folder)


def _copy_onnx(bundle: Bundle, folder: Path) -> tuple[str, str]:
    written = folder / ONNX_GRAPH
    shutil.copyfile(bundle.folder / ONNX_GRAPH, written)
    if not description(bundle).items() <= open_session(written).get_modelmeta().custom_metadata_map.items():
        import onnx

        model = onnx.load(written, load_external_data=False)
        known = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, known | description(bundle))
        written.write_bytes(model.SerializeToString())
    session = open_session(written)
    return session.get_inputs()[0].name, session.get_outputs()[0].name


def _copy_openvino(bundle: Bundle, folder: Path) -> tuple[str, str]:
    names = (OPENVINO_GRAPH, OPENVINO_WEIGHTS)
    model = read_graph(*(bundle.folder / name for name in names))
    if (model.input().names, model.output().names, _described(model)) == ({INPUT}, {OUTPUT}, description(bundle)):
        for name in names:
            shutil.copyfile(bundle.folder / name, folder / name)
    else:
        label_openvino(model, bundle)
        library().save_model(model, folder / OPENVINO_GRAPH, compress_to_fp16=False)
    written = read_graph(*(folder / name for name in names))
    return written.input().any_name, written.output().any_name


def _described(model: Any) -> dict[str, str]:
    return {
        key: str(model.get_rt_info([NAMESPACE, key]).astype(str))
        for key in DESCRIBED
        if model.has_rt_info([NAMESPACE, key])
    }


def label_openvino(model: Any, bundle: Bundle) -> None:
    """Set the description and the names of the tensors of an openvino.Model, in place."""
    _name_tensors(model)
    for key, value in description(bundle).items():
        model.set_rt_info(value, [NAMESPACE, key])


def _name_tensors(model: Any) -> None:
    """Give the input and the output of an openvino.Model the names that graphs of ONNX have, in place.

    Raises ExportError if it has several.
    """
    if (len(model.inputs), len(model.outputs)) != (1, 1):
        raise ExportError(
            f"the graph has {len(model.inputs)} inputs and {len(model.outputs)} outputs, not one of each."
        )
    for value, name in ((model.input(), INPUT), (model.output(), OUTPUT)):
        value.get_tensor().set_names({name})
        value.get_node().set_friendly_name(name)
