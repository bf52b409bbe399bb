"""Layers of an int8 graph that are given back to float, by what accuracy they cost for each millisecond they save.

For OpenVINO graphs, in which a quantized convolution or matrix product reads its input through a FakeQuantize. What a
layer costs is told by how far the answers come back to those of the plain model when it alone computes in float: the
mean Kullback-Leibler divergence, which moves long before a first class does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivace.acceleration.profile_openvino import QUANTIZED
from vivace.runtimes.openvino import GRAPH, compile_graph, core, library

__all__ = ["GivenBack", "give_back", "int8_layers", "rank_layers", "save_given_back"]

# so many groups are tried one by one: compiling a graph takes about a second
MAX_GROUPS = 12
TIMED_CALLS = 15
BATCH = 32
PURPOSE = "layers given back to float"
# no layer is free, though noise may say so
LEAST_MS = 1e-3


@dataclass(frozen=True)
class GivenBack:
    """A group of neighbouring layers, and what it would bring to compute them in float."""

    layers: tuple[str, ...]
    divergence_saved: float
    """By how much the mean divergence from the plain model's answers falls, nats."""
    cost_ms: float
    """By how much a call gets slower, at least LEAST_MS."""

    @property
    def worth(self) -> float:
        """Divergence saved for a millisecond."""
        return self.divergence_saved / self.cost_ms


def int8_layers(graph: Any) -> list[str]:
    """Names of the convolutions and matrix products of an openvino.Model that compute in int8, from the input on."""
    return [
        node.get_friendly_name()
        for node in graph.get_ordered_ops()
        if node.get_type_name() in QUANTIZED and _source(node, 0).get_type_name() == "FakeQuantize"
    ]


def give_back(quantized: Path, plain: Path, layers: tuple[str, ...]) -> Any:
    """The quantized graph as an openvino.Model with `layers` in float, their weights those of the plain graph.

    quantized, plain: files of graphs with the same names. Raises ValueError for a name that is not in both.
    """
    model, floats = core(PURPOSE).read_model(quantized), core(PURPOSE).read_model(plain)
    weights = {node.get_friendly_name(): _source(node, 1) for node in floats.get_ordered_ops() if _multiplies(node)}
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops() if _multiplies(node)}
    for name in layers:
        if name not in nodes or name not in weights:
            raise ValueError(f"the graphs have no layer {name!r} in common")
        node = nodes[name]
        source = _source(node, 0)
        if source.get_type_name() == "FakeQuantize":
            node.input(0).replace_source_output(source.input_value(0))
        if weights[name].get_type_name() == "Constant":
            constant = library(PURPOSE).op.Constant(np.array(weights[name].data))
            node.input(1).replace_source_output(constant.output(0))
    model.validate_nodes_and_infer_types()
    return model


def save_given_back(quantized: Path, plain: Path, folder: Path, layers: tuple[str, ...]) -> None:
    """Write the graph that `give_back` makes of those in the folders `quantized` and `plain` into `folder`."""
    model = give_back(quantized / GRAPH, plain / GRAPH, layers)
    library(PURPOSE).save_model(model, folder / GRAPH, compress_to_fp16=False)


def rank_layers(
    quantized: Path, plain: Path, images_NHWC: np.ndarray, expected_NK: np.ndarray, *, precision: str
) -> list[GivenBack]:
    """Groups of layers whose return to float brings the answers nearer, the most for a millisecond first.

    quantized, plain: folders of the graphs. images_NHWC uint8, expected_NK the plain model's probabilities for them.
    precision: of what is not int8, as the runtime names it.
    """
    quantized, plain = quantized / GRAPH, plain / GRAPH
    layers = int8_layers(core(PURPOSE).read_model(quantized))
    size = -(-len(layers) // MAX_GROUPS)
    groups = [tuple(layers[start : start + size]) for start in range(0, len(layers), size)]
    divergence, milliseconds = _measure(core(PURPOSE).read_model(quantized), images_NHWC, expected_NK, precision)
    found = []
    for group in groups:
        model = give_back(quantized, plain, group)
        without, slower = _measure(model, images_NHWC, expected_NK, precision)
        found.append(GivenBack(group, divergence - without, max(slower - milliseconds, LEAST_MS)))
    return sorted((group for group in found if group.divergence_saved > 0), key=lambda group: -group.worth)


def _measure(model: Any, images_NHWC: np.ndarray, expected_NK: np.ndarray, precision: str) -> tuple[float, float]:
    """Mean divergence of the answers from `expected_NK`, and ms of a call with one image."""
    batches = [images_NHWC[start : start + BATCH] for start in range(0, len(images_NHWC), BATCH)]
    programs = {size: compile_graph(model, precision, batch_size=size) for size in {1, *map(len, batches)}}
    answers = [np.array(programs[len(batch)](batch)[0]) for batch in batches]
    compiled, one, times = programs[1], images_NHWC[:1], []
    for _ in range(TIMED_CALLS):
        start_time = time.perf_counter()
        compiled(one)
        times.append(1e3 * (time.perf_counter() - start_time))
    least = np.finfo(np.float32).tiny
    found_NK = np.maximum(np.concatenate(answers), least)
    expected_NK = np.maximum(expected_NK, least)
    divergence = (expected_NK * (np.log(expected_NK) - np.log(found_NK))).sum(1).mean()
    return float(divergence), float(np.median(times[TIMED_CALLS // 3 :]))


def _multiplies(node: Any) -> bool:
    return node.get_type_name() in QUANTIZED


def _source(node: Any, index: int) -> Any:
    return node.input(index).get_source_output().get_node()
