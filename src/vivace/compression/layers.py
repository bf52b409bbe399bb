"""Layers of an int8 graph that are given back to float, by what accuracy they cost for each millisecond they save.

What a layer costs is told by how far the answers come back to those of the plain model when it alone computes in float:
the mean Kullback-Leibler divergence, which moves long before a first class does. How a layer is given back is each
runtime's own matter: layers_openvino.py, layers_onnx.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vivace.compression.onnx_layers import OnnxLayers
from vivace.compression.openvino_layers import OpenVinoLayers

__all__ = ["LAYERS", "GivenBack", "Int8Graph", "rank_layers"]

# so many groups are tried one by one: compiling a graph takes about a second
MAX_GROUPS = 12
TIMED_CALLS = 15
BATCH = 32
# no layer is free, though noise may say so
LEAST_MS = 1e-3


class Int8Graph(Protocol):
    """An int8 graph and the float32 graph that it was made from, whose layers can take the place of its own."""

    def layers(self) -> list[str]:
        """Names of the convolutions and matrix products that compute in int8, from the input on."""
        ...

    def given_back(self, layers: Sequence[str]) -> Any:
        """The graph as an object of its runtime, with `layers` in float. Raises ValueError for an unknown name."""
        ...

    def program(self, model: Any, precision: str, *, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
        """What `given_back` gave, ready to run: uint8 images_NHWC, batch_size of them → probs_NK float32."""
        ...

    def save(self, model: Any, folder: Path) -> None:
        """Write what `given_back` gave into `folder`."""
        ...


# runtime → (folder of its int8 graph, folder of its float32 graph) → both
LAYERS: dict[str, Callable[[Path, Path], Int8Graph]] = {"openvino": OpenVinoLayers, "onnx": OnnxLayers}


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


def rank_layers(
    graph: Int8Graph, images_NHWC: np.ndarray, expected_NK: np.ndarray, *, precision: str
) -> list[GivenBack]:
    """Groups of layers whose return to float brings the answers nearer, the most for a millisecond first.

    images_NHWC uint8, expected_NK the plain model's probabilities for them. precision: of what is not int8, as the
    runtime names it.
    """
    layers = graph.layers()
    size = max(1, -(-len(layers) // MAX_GROUPS))
    groups = [tuple(layers[start : start + size]) for start in range(0, len(layers), size)]
    divergence, milliseconds = _measure(graph, (), images_NHWC, expected_NK, precision)
    found = []
    for group in groups:
        without, slower = _measure(graph, group, images_NHWC, expected_NK, precision)
        found.append(GivenBack(group, divergence - without, max(slower - milliseconds, LEAST_MS)))
    return sorted((group for group in found if group.divergence_saved > 0), key=lambda group: -group.worth)


def _measure(
    graph: Int8Graph, layers: Sequence[str], images_NHWC: np.ndarray, expected_NK: np.ndarray, precision: str
) -> tuple[float, float]:
    """Mean divergence of the answers from `expected_NK` with `layers` in float, and ms of a call with one image."""
    model = graph.given_back(layers)
    batches = [images_NHWC[start : start + BATCH] for start in range(0, len(images_NHWC), BATCH)]
    programs = {size: graph.program(model, precision, batch_size=size) for size in {1, *map(len, batches)}}
    answers = [programs[len(batch)](batch) for batch in batches]
    one, times = images_NHWC[:1], []
    for _ in range(TIMED_CALLS):
        start_time = time.perf_counter()
        programs[1](one)
        times.append(1e3 * (time.perf_counter() - start_time))
    least = np.finfo(np.float32).tiny
    found_NK = np.maximum(np.concatenate(answers), least)
    expected_NK = np.maximum(expected_NK, least)
    divergence = (expected_NK * (np.log(expected_NK) - np.log(found_NK))).sum(1).mean()
    return float(divergence), float(np.median(times[TIMED_CALLS // 3 :]))
