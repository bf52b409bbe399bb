"""Which layers of an int8 graph to revert to float, ranked by the accuracy they regain per millisecond they cost.

A layer's effect on accuracy is measured by the mean Kullback-Leibler divergence between the plain model's probabilities
and those of the graph with that layer alone in float: it changes long before the top-1 class does. How a layer is
reverted depends on the runtime: `layers` in its row of `vivace.runtimes.table`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vivace.runtimes.table import RUNTIMES, imported

__all__ = ["Int8Graph", "LayerGroup", "int8_graph", "rank_layers", "with_int8_layers"]

# number of groups that are tried one by one: compiling a graph takes about a second
MAX_GROUPS = 12
TIMED_CALLS = 15
BATCH = 32
# lower bound for the cost of a group, which noise may make negative
MIN_COST_MS = 1e-3


class Int8Graph(Protocol):
    """An int8 graph, and the float32 graph it was made from, to which its layers can be reverted."""

    def layers(self) -> list[str]:
        """Names of the convolutions and matrix products that compute in int8, in order from the input."""
        ...

    def with_float_layers(self, layers: Sequence[str]) -> Any:
        """The graph as an object of its runtime, with `layers` in float. Raises ValueError for an unknown name."""
        ...

    def program(self, model: Any, precision: str, *, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
        """A graph of `with_float_layers`, ready to run: uint8 images_NHWC, N = batch_size → probs_NK float32."""
        ...

    def save(self, model: Any, folder: Path) -> None:
        """Write a graph of `with_float_layers` into `folder`."""
        ...


def with_int8_layers() -> list[str]:
    """Names of the runtimes whose layers can be reverted one by one, those that are quick to build first."""
    rows = sorted(RUNTIMES.values(), key=lambda row: row.build_order)
    return [row.name for row in rows if row.layers is not None]


def int8_graph(runtime: str, quantized: Path, plain: Path) -> Int8Graph:
    """The int8 graph in the folder `quantized`, and the float32 graph in `plain` that it was made from."""
    graph: Int8Graph = imported(str(RUNTIMES[runtime].layers))(quantized, plain)
    return graph


@dataclass(frozen=True)
class LayerGroup:
    """A group of adjacent layers, and the effect of reverting them to float."""

    layers: tuple[str, ...]
    divergence_saved: float
    """Decrease of the mean divergence from the plain model's probabilities, nats."""
    cost_ms: float
    """Increase of the time per call, at least MIN_COST_MS."""

    @property
    def worth(self) -> float:
        """Divergence saved per millisecond."""
        return self.divergence_saved / self.cost_ms


def rank_layers(
    graph: Int8Graph,
    images_NHWC: np.ndarray,
    expected_NK: np.ndarray,
    *,
    precision: str,
    multi_label: bool = False,
) -> list[LayerGroup]:
    """Groups of layers that reduce the divergence when they are reverted to float, the most per millisecond first.

    images_NHWC: uint8. expected_NK: the plain model's probabilities for them. precision: of what is not int8, as the
    runtime calls it. multi_label: each label has a probability of its own, and their divergences are added.
    """
    layers = graph.layers()
    size = max(1, -(-len(layers) // MAX_GROUPS))
    groups = [tuple(layers[start : start + size]) for start in range(0, len(layers), size)]
    divergence, milliseconds = _measure(graph, (), images_NHWC, expected_NK, precision, multi_label)
    found = []
    for group in groups:
        without, slower = _measure(graph, group, images_NHWC, expected_NK, precision, multi_label)
        found.append(LayerGroup(group, divergence - without, max(slower - milliseconds, MIN_COST_MS)))
    return sorted((group for group in found if group.divergence_saved > 0), key=lambda group: -group.worth)


def _measure(
    graph: Int8Graph,
    layers: Sequence[str],
    images_NHWC: np.ndarray,
    expected_NK: np.ndarray,
    precision: str,
    multi_label: bool,
) -> tuple[float, float]:
    """(mean divergence from `expected_NK` with `layers` in float, ms of a call with one image)."""
    model = graph.with_float_layers(layers)
    batches = [images_NHWC[start : start + BATCH] for start in range(0, len(images_NHWC), BATCH)]
    programs = {size: graph.program(model, precision, batch_size=size) for size in {1, *map(len, batches)}}
    answers = [programs[len(batch)](batch) for batch in batches]
    one, times = images_NHWC[:1], []
    for _ in range(TIMED_CALLS):
        start_time = time.perf_counter()
        programs[1](one)
        times.append(1e3 * (time.perf_counter() - start_time))
    least = np.finfo(np.float32).tiny
    found_NK = np.concatenate(answers)
    if multi_label:
        # yes and no of each label
        found_NK, expected_NK = (np.concatenate([probs, 1 - probs], 1) for probs in (found_NK, expected_NK))
    found_NK, expected_NK = np.maximum(found_NK, least), np.maximum(expected_NK, least)
    divergence = (expected_NK * (np.log(expected_NK) - np.log(found_NK))).sum(1).mean()
    return float(divergence), float(np.median(times[TIMED_CALLS // 3 :]))
