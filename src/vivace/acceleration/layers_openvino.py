"""Layers of OpenVINO graphs: in int8 a convolution or matrix product reads its input through a FakeQuantize.

Between the two there may be what moves values and does not change them, such as a reshape before the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivace.acceleration.profile_openvino import QUANTIZED
from vivace.runtimes.openvino import GRAPH, compile_graph, core, library

__all__ = ["OpenVinoLayers"]

PURPOSE = "layers given back to float"
FAKE_QUANTIZE = "FakeQuantize"
# what comes out of them was among what went in
MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "ReduceMax")


class OpenVinoLayers:
    """An `Int8Graph` of OpenVINO; its models are openvino.Model."""

    def __init__(self, quantized: Path, plain: Path) -> None:
        """quantized, plain: folders of graphs with the same names. Raises MissingExtra."""
        self._quantized = core(PURPOSE).read_model(quantized / GRAPH)
        # kept: its constants live as long as it does
        self._plain = core(PURPOSE).read_model(plain / GRAPH)
        self._weights = {node.get_friendly_name(): _source(node, 1) for node in _products(self._plain)}

    def layers(self) -> list[str]:
        """Names of the convolutions and matrix products that compute in int8, from the input on."""
        return [node.get_friendly_name() for node in _products(self._quantized) if _quantizer(node) is not None]

    def given_back(self, layers: Sequence[str]) -> Any:
        """The graph with `layers` in float, their weights those of the plain graph. Raises ValueError."""
        model = self._quantized.clone()
        nodes = {node.get_friendly_name(): node for node in _products(model)}
        for name in layers:
            if name not in nodes or name not in self._weights:
                raise ValueError(f"the graphs have no layer {name!r} in common")
            node, weights = nodes[name], self._weights[name]
            if (read := _quantizer(node)) is not None:
                read.replace_source_output(read.get_source_output().get_node().input_value(0))
            _free_answers(node)
            if weights.get_type_name() == "Constant":
                constant = library(PURPOSE).op.Constant(np.array(weights.data))
                node.input(1).replace_source_output(constant.output(0))
        model.validate_nodes_and_infer_types()
        return model

    def program(self, model: Any, precision: str, *, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
        """A model ready to run."""
        compiled = compile_graph(model, precision, batch_size=batch_size)
        return lambda images_NHWC: np.array(compiled(images_NHWC)[0])

    def save(self, model: Any, folder: Path) -> None:
        """Write a model into `folder`."""
        library(PURPOSE).save_model(model, folder / GRAPH, compress_to_fp16=False)


def _products(model: Any) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() in QUANTIZED]


def _quantizer(node: Any) -> Any | None:
    """The input, of a product or of what moves values before it, that comes from its FakeQuantize.

    None if there is none, or if others read what lies between.
    """
    read = node.input(0)
    while (source := read.get_source_output().get_node()).get_type_name() in MOVES:
        if len(source.output(0).get_target_inputs()) > 1:
            return None
        read = source.input(0)
    return read if source.get_type_name() == FAKE_QUANTIZE else None


def _free_answers(node: Any) -> None:
    """Take away the FakeQuantize behind a product, unless it is that of the next product, in place."""
    for read in node.output(0).get_target_inputs():
        quantizer = read.get_node()
        if quantizer.get_type_name() == FAKE_QUANTIZE and not _feeds_product(quantizer):
            for reader in quantizer.output(0).get_target_inputs():
                reader.replace_source_output(node.output(0))


def _feeds_product(node: Any) -> bool:
    """Whether a product reads what a node gives, or what moves of it."""
    readers = [read.get_node() for read in node.output(0).get_target_inputs()]
    return any(
        reader.get_type_name() in QUANTIZED or (reader.get_type_name() in MOVES and _feeds_product(reader))
        for reader in readers
    )


def _source(node: Any, index: int) -> Any:
    return node.input(index).get_source_output().get_node()
