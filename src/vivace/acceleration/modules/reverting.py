"""int8 with some layers in float, for modules that lose too much with all of them in int8.

Layers are ranked as those of bundles (`compression.layers`), by how much nearer the outputs for the example come to the
original's, per millisecond.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vivace.acceleration.modules.dropin import AcceleratedModule
from vivace.acceleration.modules.signature import flatten
from vivace.compression.layers import LayerGroup

__all__ = ["float_sets"]

# groups that are tried one by one, and sets of them
MAX_GROUPS, NUM_SETS = 12, 4
TIMED_CALLS = 7
# lower bound for the cost of a group, which noise may make negative
MIN_COST_MS = 1e-3


def float_sets(
    layers: Sequence[str],
    build: Callable[[Sequence[str]], AcceleratedModule],
    call: Callable[[AcceleratedModule], Any],
    expected: Sequence[Tensor],
    *,
    stop: Callable[[], bool],
) -> list[tuple[str, ...]]:
    """Sets of layers that are worth being in float, small ones first; none where no layer brings outputs nearer.

    layers: all int8 layers, in order. build: the module with some of them in float. call: its outputs for the example,
    of which `expected` are the original's. stop: asked before each group, of which the others are left out then.
    """
    size = max(1, -(-len(layers) // MAX_GROUPS))
    distance, ms = _measure(build(()), call, expected)
    groups = []
    for start in range(0, len(layers), size):
        if stop():
            break
        group = tuple(layers[start : start + size])
        nearer, slower = _measure(build(group), call, expected)
        groups.append(LayerGroup(group, distance - nearer, max(slower - ms, MIN_COST_MS)))
    useful = sorted((group for group in groups if group.divergence_saved > 0), key=lambda group: -group.worth)
    counts = sorted({min(len(useful), 2**step) for step in range(NUM_SETS)} - {0})
    return [tuple(name for group in useful[:count] for name in group.layers) for count in counts]


def _measure(
    module: AcceleratedModule, call: Callable[[AcceleratedModule], Any], expected: Sequence[Tensor]
) -> tuple[float, float]:
    """(mean distance of the outputs from the original's, relative to their norm; ms of a call)."""
    times = []
    for _ in range(TIMED_CALLS):
        began = time.perf_counter()
        outputs = call(module)
        times.append(1e3 * (time.perf_counter() - began))
    distances = [
        float((one - other).norm()) / max(float(one.norm()), 1e-12)
        for one, other in zip(expected, flatten(outputs)[0], strict=True)
        if one.is_floating_point()
    ]
    return float(np.mean(distances)) if distances else 0.0, float(np.median(times[TIMED_CALLS // 3 :]))
