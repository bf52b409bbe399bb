"""Layers of ONNX graphs that are reverted to float.

In int8 each input of a product comes from a DequantizeLinear, which reads a QuantizeLinear or integer constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivace.compression.quantize import PRODUCTS, prepare_onnx
from vivace.errors import MissingExtra
from vivace.runtimes.onnx import GRAPH, open_session
from vivace.scratch import scratch_folder

__all__ = ["OnnxLayers"]

DEQUANTIZE, QUANTIZE = "DequantizeLinear", "QuantizeLinear"
# their outputs are values of their inputs, so quantization passes through them
MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "ReduceMax")


class OnnxLayers:
    """An `Int8Graph` of ONNX Runtime; its models are onnx.ModelProto."""

    def __init__(self, quantized: Path, plain: Path) -> None:
        """quantized, plain: folders of graphs. Raises MissingExtra."""
        try:
            import onnx
        except ImportError:
            raise MissingExtra("onnx", "accelerate", "reverting layers to float") from None
        self._quantized = onnx.load(quantized / GRAPH)
        with scratch_folder("layers") as folder:
            # prepared like the graph that was quantized, so that its nodes have the same names
            prepared = Path(folder) / GRAPH
            prepare_onnx(plain / GRAPH, prepared)
            floats = onnx.load(prepared).graph
        self._plain = {node.name: node for node in floats.node if node.op_type in PRODUCTS}
        self._constants = {constant.name: constant for constant in floats.initializer}

    def layers(self) -> list[str]:
        """Names of the convolutions and matrix products that compute in int8, in order from the input."""
        made = _makers(self._quantized.graph)
        return [
            node.name
            for node in self._quantized.graph.node
            if node.op_type in PRODUCTS and _made_by(DEQUANTIZE, made, node.input[0]) is not None
        ]

    def with_float_layers(self, layers: Sequence[str]) -> Any:
        """The graph with `layers` in float, with the plain graph's weights. Raises ValueError for an unknown name."""
        model = type(self._quantized)()
        model.CopyFrom(self._quantized)
        graph = model.graph
        made, nodes = _makers(graph), {node.name: node for node in graph.node if node.op_type in PRODUCTS}
        present = {constant.name for constant in graph.initializer}
        for name in layers:
            if name not in nodes or name not in self._plain:
                raise ValueError(f"the graphs have no layer {name!r} in common")
            node, plain = nodes[name], self._plain[name]
            for index, read in enumerate(node.input):
                dequantized = _made_by(DEQUANTIZE, made, read)
                if dequantized is None:
                    continue
                quantized = _made_by(QUANTIZE, made, dequantized.input[0])
                constant = self._constants.get(plain.input[index])
                if quantized is not None:
                    node.input[index] = quantized.input[0]
                elif constant is not None:
                    # under a new name: another layer may read the same weights in int8
                    node.input[index] = f"{constant.name} in float"
                    if node.input[index] not in present:
                        added = graph.initializer.add()
                        added.CopyFrom(constant)
                        added.name = node.input[index]
                        present.add(added.name)
            _free_outputs(graph, node.output[0])
        _drop_unread(graph)
        return model

    def program(self, model: Any, precision: str, *, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
        """A model ready to run. It takes any number of images; the precision is part of the graph."""
        session = open_session(model.SerializeToString())

        def run(images_NHWC: np.ndarray) -> np.ndarray:
            probs_NK: np.ndarray = session.run(["probs"], {"images": np.ascontiguousarray(images_NHWC)})[0]
            return probs_NK

        return run

    def save(self, model: Any, folder: Path) -> None:
        """Write a model into `folder`."""
        (folder / GRAPH).write_bytes(model.SerializeToString())


def _makers(graph: Any) -> dict[str, Any]:
    """The node that makes each value."""
    return {value: node for node in graph.node for value in node.output}


def _made_by(kind: str, made: dict[str, Any], value: str) -> Any | None:
    """The node that makes a value, if it is of this kind."""
    node = made.get(value)
    return node if node is not None and node.op_type == kind else None


def _free_outputs(graph: Any, value: str) -> None:
    """Let the nodes after a product read its float output, except for int8 products. Changes the graph in place."""
    for quantized in _readers(graph, value):
        if quantized.op_type != QUANTIZE:
            continue
        for dequantized in _readers(graph, quantized.output[0]):
            readers = _readers(graph, dequantized.output[0])
            if dequantized.op_type != DEQUANTIZE or any(node.op_type in PRODUCTS for node in readers):
                continue
            for node in readers:
                node.input[:] = [value if read == dequantized.output[0] else read for read in node.input]
                if node.op_type in MOVES:
                    _free_outputs(graph, node.output[0])


def _readers(graph: Any, value: str) -> list[Any]:
    return [node for node in graph.node if value in node.input]


def _drop_unread(graph: Any) -> None:
    """Remove nodes and constants that nothing reads any more, in place."""
    while True:
        read = {value for node in graph.node for value in node.input} | {output.name for output in graph.output}
        unread = [node for node in graph.node if not read.intersection(node.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
