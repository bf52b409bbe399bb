"""Layers of OpenVINO graphs that are reverted to float.

In int8 a convolution or matrix product reads its input through a FakeQuantize; a reshape or a pooling may be between
them. The operations that read a layer's output, such as a residual sum or a gate, may round all their inputs, which can
cost more accuracy than the layers themselves: they are reverted too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivace.libraries.openvino import core, library
from vivace.runtimes.openvino import GRAPH, QUANTIZED, compile_graph

__all__ = ["OpenVinoLayers"]

PURPOSE = "reverting layers to float"
FAKE_QUANTIZE, CONSTANT = "FakeQuantize", "Constant"
# operations that may be between a FakeQuantize and its product
BETWEEN = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Gather", "MaxPool", "ReduceMax", "ReduceMean", "AvgPool")
# operations that may be between a product and the FakeQuantize after it
AFTER = (
    *("Add", "Subtract", "Multiply", "Clamp", "Relu", "PRelu", "Elu", "Gelu", "Swish", "HSwish", "Sigmoid", "HSigmoid"),
    *BETWEEN,
)


class OpenVinoLayers:
    """An `Int8Graph` of OpenVINO; its models are openvino.Model."""

    def __init__(self, quantized: Path, plain: Path) -> None:
        """quantized, plain: folders of graphs with the same names. Raises MissingExtra."""
        self._quantized = core(PURPOSE).read_model(quantized / GRAPH)
        # a reference is kept: its constants live as long as the model
        self._plain = core(PURPOSE).read_model(plain / GRAPH)
        self._weights = {node.get_friendly_name(): _source(node, 1) for node in _products(self._plain)}
        self._biases = {
            add.get_friendly_name(): bias for node in _products(self._plain) for add, _, bias in _biases(node)
        }

    def layers(self) -> list[str]:
        """Names of the convolutions and matrix products that compute in int8, in order from the input."""
        return [node.get_friendly_name() for node in _products(self._quantized) if _quantizer(node) is not None]

    def with_float_layers(self, layers: Sequence[str]) -> Any:
        """The graph with `layers` in float, with the plain graph's weights and biases.

        Raises ValueError for an unknown name.
        """
        model = self._quantized.clone()
        nodes = {node.get_friendly_name(): node for node in _products(model)}
        for name in layers:
            if name not in nodes or name not in self._weights:
                raise ValueError(f"the graphs have no layer {name!r} in common")
            node, weights = nodes[name], self._weights[name]
            if (read := _quantizer(node)) is not None:
                read.replace_source_output(read.get_source_output().get_node().input_value(0))
            _free_outputs(node)
            if weights.get_type_name() == CONSTANT:
                _replace(node.input(1), weights)
            # biases were corrected during quantization, for the shift that rounded weights cause
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
    """The input that comes from a product's FakeQuantize: its own, or that of an operation between the two.

    None if there is no FakeQuantize, or if others read what is between.
    """
    read = node.input(0)
    while (source := read.get_source_output().get_node()).get_type_name() in BETWEEN:
        if len(source.output(0).get_target_inputs()) > 1:
            return None
        read = source.input(0)
    return read if source.get_type_name() == FAKE_QUANTIZE else None


def _free_outputs(node: Any) -> None:
    """Let the operations after a node, except for products, read all their inputs unrounded, in place."""
    for read in node.output(0).get_target_inputs():
        if read.get_node().get_type_name() == FAKE_QUANTIZE:
            for after in read.get_node().output(0).get_target_inputs():
                if not _leads_to_product(after.get_node()):
                    after.replace_source_output(node.output(0))
    # this includes those that were after a FakeQuantize
    for reader in [read.get_node() for read in node.output(0).get_target_inputs()]:
        if reader.get_type_name() in AFTER:
            for other in reader.inputs():
                if (source := other.get_source_output().get_node()).get_type_name() == FAKE_QUANTIZE:
                    other.replace_source_output(source.input_value(0))
            _free_outputs(reader)


def _leads_to_product(node: Any) -> bool:
    """Whether a node is a product, or between a FakeQuantize and a product."""
    if node.get_type_name() not in BETWEEN:
        return node.get_type_name() in QUANTIZED
    return any(_leads_to_product(read.get_node()) for read in node.output(0).get_target_inputs())


def _biases(node: Any) -> list[tuple[Any, int, Any]]:
    """(sum, index of its constant input, constant) for each sum of a product's output and a constant."""
    adds = [read.get_node() for read in node.output(0).get_target_inputs() if read.get_node().get_type_name() == "Add"]
    return [
        (add, index, _source(add, index))
        for add in adds
        for index in (0, 1)
        if _source(add, index).get_type_name() == CONSTANT
    ]


def _replace(read: Any, constant: Any) -> None:
    """Connect an input to a copy of another graph's constant."""
    read.replace_source_output(library(PURPOSE).op.Constant(np.array(constant.data)).output(0))


def _source(node: Any, index: int) -> Any:
    return node.input(index).get_source_output().get_node()
