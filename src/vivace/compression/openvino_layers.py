"""Layers of OpenVINO graphs: in int8 a convolution or matrix product reads its input through a FakeQuantize.

Between the two there may be a reshape, or the mean over a map. What reads a layer's answers may round all it reads: a
sum with what goes round some layers, a product with a gate. That may cost more than the layers do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivace.runtimes.openvino import GRAPH, QUANTIZED, compile_graph, core, library

__all__ = ["OpenVinoLayers"]

PURPOSE = "layers given back to float"
FAKE_QUANTIZE, CONSTANT = "FakeQuantize", "Constant"
# what may lie between a FakeQuantize and the product for whose sake it is there
BETWEEN = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Gather", "MaxPool", "ReduceMax", "ReduceMean", "AvgPool")
# what lies between a product and the FakeQuantize behind it
BEHIND = (
    *("Add", "Subtract", "Multiply", "Clamp", "Relu", "PRelu", "Elu", "Gelu", "Swish", "HSwish", "Sigmoid", "HSigmoid"),
    *BETWEEN,
)


class OpenVinoLayers:
    """An `Int8Graph` of OpenVINO; its models are openvino.Model."""

    def __init__(self, quantized: Path, plain: Path) -> None:
        """quantized, plain: folders of graphs with the same names. Raises MissingExtra."""
        self._quantized = core(PURPOSE).read_model(quantized / GRAPH)
        # kept: its constants live as long as it does
        self._plain = core(PURPOSE).read_model(plain / GRAPH)
        self._weights = {node.get_friendly_name(): _source(node, 1) for node in _products(self._plain)}
        self._biases = {
            add.get_friendly_name(): bias for node in _products(self._plain) for add, _, bias in _biases(node)
        }

    def layers(self) -> list[str]:
        """Names of the convolutions and matrix products that compute in int8, from the input on."""
        return [node.get_friendly_name() for node in _products(self._quantized) if _quantizer(node) is not None]

    def given_back(self, layers: Sequence[str]) -> Any:
        """The graph with `layers` in float, weights and biases those of the plain graph. Raises ValueError."""
        model = self._quantized.clone()
        nodes = {node.get_friendly_name(): node for node in _products(model)}
        for name in layers:
            if name not in nodes or name not in self._weights:
                raise ValueError(f"the graphs have no layer {name!r} in common")
            node, weights = nodes[name], self._weights[name]
            if (read := _quantizer(node)) is not None:
                read.replace_source_output(read.get_source_output().get_node().input_value(0))
            _free_answers(node)
            if weights.get_type_name() == CONSTANT:
                _replace(node.input(1), weights)
            # moved when it was quantized, to make up for what rounding the weights did to the mean
            for add, index, _ in _biases(node):
                if add.get_friendly_name() in self._biases:
                    _replace(add.input(index), self._biases[add.get_friendly_name()])
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
    """The input, of a product or of what lies before it, that comes from its FakeQuantize.

    None if there is none, or if others read what lies between.
    """
    read = node.input(0)
    while (source := read.get_source_output().get_node()).get_type_name() in BETWEEN:
        if len(source.output(0).get_target_inputs()) > 1:
            return None
        read = source.input(0)
    return read if source.get_type_name() == FAKE_QUANTIZE else None


def _free_answers(node: Any) -> None:
    """Let what lies behind a node compute in float, all that it reads unrounded, but for other products, in place."""
    for read in node.output(0).get_target_inputs():
        if read.get_node().get_type_name() == FAKE_QUANTIZE:
            for behind in read.get_node().output(0).get_target_inputs():
                if not _leads_to_product(behind.get_node()):
                    behind.replace_source_output(node.output(0))
    # those that were behind a FakeQuantize among them
    for reader in [read.get_node() for read in node.output(0).get_target_inputs()]:
        if reader.get_type_name() in BEHIND:
            for other in reader.inputs():
                if (source := other.get_source_output().get_node()).get_type_name() == FAKE_QUANTIZE:
                    other.replace_source_output(source.input_value(0))
            _free_answers(reader)


def _leads_to_product(node: Any) -> bool:
    """Whether a node is a product, or lies between a FakeQuantize and one."""
    if node.get_type_name() not in BETWEEN:
        return node.get_type_name() in QUANTIZED
    return any(_leads_to_product(read.get_node()) for read in node.output(0).get_target_inputs())


def _biases(node: Any) -> list[tuple[Any, int, Any]]:
    """(sum, index of its constant, constant) of the sums of a product's answers and constants."""
    adds = [read.get_node() for read in node.output(0).get_target_inputs() if read.get_node().get_type_name() == "Add"]
    return [
        (add, index, _source(add, index))
        for add in adds
        for index in (0, 1)
        if _source(add, index).get_type_name() == CONSTANT
    ]


def _replace(read: Any, constant: Any) -> None:
    """Let an input read a copy of a constant of another graph."""
    read.replace_source_output(library(PURPOSE).op.Constant(np.array(constant.data)).output(0))


def _source(node: Any, index: int) -> Any:
    return node.input(index).get_source_output().get_node()
