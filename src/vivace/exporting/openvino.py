"""The graph of a bundle for OpenVINO."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from vivace.bundle import Bundle
from vivace.errors import ExportError, MissingExtra
from vivace.exporting import onnx
from vivace.exporting.export_errors import exporting
from vivace.exporting.graphs import traced
from vivace.exporting.labels import DESCRIBED, DESCRIBED_SETS, NAMESPACE, description
from vivace.libraries.openvino import library
from vivace.runtimes.loading import Classifier
from vivace.runtimes.onnx import GRAPH as ONNX_GRAPH
from vivace.runtimes.openvino import GRAPH, WEIGHTS, classifier_of, read_graph
from vivace.runtimes.quiet import quiet
from vivace.runtimes.table import INPUT, OUTPUT
from vivace.scratch import scratch_folder

__all__ = ["copy_labelled", "load_file", "write_file", "write_graph", "write_with_pixels"]


def write_graph(bundle: Bundle, folder: Path) -> None:
    """Write the files of an OpenVINO graph, only its batch open. Raises MissingExtra, ExportError.

    What OpenVINO can't read of a PyTorch program, such as positions that are interpolated, it may read of ONNX. So it
    does where a network of the user's own has a graph and its code is not at hand.
    """
    openvino = library("an export to OpenVINO")
    if bundle.has_code:
        try:
            with quiet(), exporting("openvino"):
                model = openvino.convert_model(traced(bundle))
        except ExportError as error:
            model = _by_onnx(bundle, openvino, error)
    else:
        model = _by_onnx(bundle, openvino, None)
    with quiet(), exporting("openvino"):
        # the converter leaves every side open, and of open sides OpenVINO fuses less
        side = bundle.preprocess.size
        model.reshape([-1, side, side, bundle.preprocess.channels])
        _label(model, bundle)
        # float32 as the weights are: a smaller file is a step of its own, with its own check
        openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)


def write_with_pixels(model: Any, output: int, bundle: Bundle, folder: Path) -> None:
    """Write the graph of a bundle around an openvino.Model of normalised images_BCHW → …, logits_BK, …

    output: place of the logits. Its layers stay as they are, so one that was quantized answers as it did.
    Raises MissingExtra, and ExportError for a model that takes one number of images alone.
    """
    openvino = library("an export to OpenVINO")
    inner = model.clone()
    if not inner.inputs[0].get_partial_shape()[0].is_dynamic:
        raise ExportError("the graph takes one number of images alone. Export the network again.")
    with quiet(), exporting("openvino"):
        pixels_NHWC, images_NCHW = _normalised(openvino, bundle)
        for user in inner.inputs[0].get_target_inputs():
            user.replace_source_output(images_NCHW)
        probs_NK = _probabilities(openvino, inner.outputs[output].get_node().input_value(0), bundle)
        whole = openvino.Model([probs_NK], [pixels_NHWC], "vivace")
        _label(whole, bundle)
        openvino.save_model(whole, folder / GRAPH, compress_to_fp16=False)


def _normalised(openvino: Any, bundle: Bundle) -> tuple[Any, Any]:
    """(input, uint8 pixels_NHWC; output, float images_NCHW as the network takes them), see `runtimes.graph`."""
    ops, own = openvino.opset13, bundle.preprocess
    mean_C, std_C = np.array(own.mean), np.array(own.std)
    # one value for each of a row's values, pixel by pixel, channel by channel
    scale, shift = (np.tile(values_C, own.size).astype(np.float32) for values_C in (1 / (255 * std_C), -mean_C / std_C))
    pixels = ops.parameter([-1, own.size, own.size, own.channels], np.uint8)
    # 0 stands for the side that is there already
    rows = ops.reshape(ops.convert(pixels, "f32"), np.array([0, 0, -1]), special_zero=True)
    rows = ops.add(ops.multiply(rows, ops.constant(scale)), ops.constant(shift))
    images = ops.reshape(rows, np.array([0, 0, own.size, own.channels]), special_zero=True)
    return pixels, ops.transpose(images, np.array([0, 3, 1, 2])).output(0)


def _probabilities(openvino: Any, logits_NK: Any, bundle: Bundle) -> Any:
    ops = openvino.opset13
    logits_NK = ops.convert(logits_NK, "f32")
    return ops.sigmoid(logits_NK) if bundle.info.multi_label else ops.softmax(logits_NK, 1)


def _by_onnx(bundle: Bundle, openvino: Any, first: ExportError | None) -> Any:
    """OpenVINO's model of the bundle as ONNX. Raises `first`, which tells more, where that way is closed too."""
    try:
        with scratch_folder("export") as folder, quiet(), exporting("openvino"):
            onnx.write_graph(bundle, folder)
            return openvino.convert_model(str(folder / ONNX_GRAPH))
    except (ExportError, MissingExtra) as error:
        raise first or error from None


def write_file(bundle: Bundle, path: Path) -> None:
    """Write the graph to `path`, as `write_graph` does, and its weights beside it."""
    write_graph(bundle, path.parent)


def load_file(path: Path) -> Classifier:
    """What OpenVINO computes from a file and the .bin beside it. Raises BundleError, MissingExtra."""
    return classifier_of(path, path.with_suffix(".bin"), "fp32")


def copy_labelled(bundle: Bundle, folder: Path) -> tuple[str, str]:
    """Copy the graph of a bundle into `folder`, with its description; the names of input and output in the copy."""
    names = (GRAPH, WEIGHTS)
    model = read_graph(*(bundle.checked(name) for name in names))
    if (model.input().names, model.output().names, _described(model)) == ({INPUT}, {OUTPUT}, description(bundle)):
        for name in names:
            shutil.copyfile(bundle.folder / name, folder / name)
    else:
        _label(model, bundle)
        library().save_model(model, folder / GRAPH, compress_to_fp16=False)
    written = read_graph(*(folder / name for name in names))
    return written.input().any_name, written.output().any_name


def _described(model: Any) -> dict[str, str]:
    return {
        key: str(model.get_rt_info([NAMESPACE, key]).astype(str))
        for key in (*DESCRIBED, *DESCRIBED_SETS)
        if model.has_rt_info([NAMESPACE, key])
    }


def _label(model: Any, bundle: Bundle) -> None:
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
