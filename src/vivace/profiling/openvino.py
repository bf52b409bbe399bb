"""Layers of an OpenVINO graph by its performance counters, under their names in the graph that was compiled.

OpenVINO fuses operations and renames the result; here layers are traced back to the operations of the original graph.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from vivace.profiling.profile import LayerTime
from vivace.profiling.worker import Job
from vivace.runtimes.loading import graph_file
from vivace.runtimes.openvino import GRAPH, QUANTIZED, compile_graph, read_graph

__all__ = ["profile", "quantized_layers"]

MULTIPLYING = (*QUANTIZED, "ScaledDotProductAttention")
# types of executed layers
MULTIPLIES = re.compile(r"Convolution|Deconvolution|FullyConnected|MatMul|ScaledDotProduct|MHA")
# a kernel's name ends with the type of its input
PRECISIONS = {"i8": "int8", "u8": "int8", "bf16": "bf16", "f16": "fp16", "f32": "fp32"}
# its counters are means in whole µs since compilation, so a median needs several compilations
NUM_MEANS = 3


def quantized_layers(model_xml: Path) -> list[str]:
    """Names of the convolutions and matrix products of a float32 OpenVINO graph, in order: what NNCF quantizes."""
    model = read_graph(model_xml)
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in QUANTIZED]


def profile(job: Job) -> tuple[list[LayerTime], list[float]]:
    """(layers in the order in which they ran, mean ms of a call for each compilation)."""
    path = graph_file(job.bundle, GRAPH, "openvino")
    images = np.ascontiguousarray(job.images_NHWC)
    warmup = max(job.warmup, 1)
    means: list[list[float]] = []
    calls_ms: list[float] = []
    for _ in range(NUM_MEANS):
        compiled = compile_graph(path, job.precision, batch_size=len(images), profiling=True)
        request = compiled.create_infer_request()
        _run(request, images, warmup)
        before = _means_ms(request)
        # a mean, like those of the layers: an interrupted call counts in both
        calls_ms.append(float(np.mean(_run(request, images, job.calls))))
        # by position: generated names differ between compilations
        pairs = zip(before, _means_ms(request), strict=True)
        means.append([_mean_since(then, now, warmup, job.calls) for then, now in pairs])
    names = _names(compiled.get_runtime_model(), read_graph(path))
    layers = []
    for info, *found in zip(request.get_profiling_info(), *means, strict=True):
        if "NOT_RUN" in str(info.status):
            continue
        traced = names.get(info.node_name)
        mixed = info.node_type == "Subgraph" and _precision(info.exec_type) == "int8"
        layers.append(
            LayerTime(
                name=traced or info.node_name,
                kind=info.node_type,
                kernel=info.exec_type,
                # for several operations in one kernel only the input type of the first is known
                precision="other" if mixed else _precision(info.exec_type),
                ms=float(np.median(found)),
                multiplies=traced is not None or bool(MULTIPLIES.search(info.node_type)),
            )
        )
    return layers, calls_ms


def _run(request: Any, images_NHWC: np.ndarray, count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        request.infer([images_NHWC])
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _means_ms(request: Any) -> list[float]:
    """Mean ms of each layer over all calls so far; 0 for those that were fused into others."""
    return [info.real_time.total_seconds() * 1e3 for info in request.get_profiling_info()]


def _mean_since(before: float, now: float, warmup: int, calls: int) -> float:
    """Mean of the last `calls`, from the mean of the first `warmup` calls and the mean of all."""
    return max(0.0, now * (warmup + calls) - before * warmup) / calls


def _precision(kernel: str) -> str:
    return PRECISIONS.get(kernel.rpartition("_")[2].lower(), "other")


def _names(executed: Any, source: Any) -> dict[str, str]:
    """Names of executed layers that multiply → names of their operations in the original graph."""
    graph = {op.get_friendly_name(): op for op in source.get_ordered_ops()}
    targets = {name for name, op in graph.items() if op.get_type_name() in MULTIPLYING}
    found: dict[str, str] = {}
    layers = [op for op in executed.get_ordered_ops() if _fact(op, "layerType") != "Const"]
    # exact matches first, so that guesses can't take their operations
    for ways in (_by_name, _by_fused_operation, _by_neighbour):
        for layer in layers:
            name = layer.get_friendly_name()
            if name in found or (ways is not _by_name and not MULTIPLIES.search(_fact(layer, "layerType"))):
                continue
            free = [target for target in ways(layer, graph, targets) if target not in found.values()]
            if len(free) == 1 or (free and ways is not _by_neighbour):
                found[name] = free[0]
    return found


def _by_name(layer: Any, graph: dict[str, Any], targets: set[str]) -> list[str]:
    """Operations among the names of what was fused; parts of an int8 layer have its name as a prefix."""
    names = _originals(layer)
    if MULTIPLIES.search(_fact(layer, "layerType")):
        names += [name.rpartition("/")[0] for name in names]
    return [name for name in names if name in targets]


def _by_fused_operation(layer: Any, graph: dict[str, Any], targets: set[str]) -> list[str]:
    """Only what was fused into it, such as an addition, is named: the operation whose output that reads."""
    for name in _originals(layer):
        op = graph.get(name)
        while op is not None and op.get_friendly_name() not in targets:
            inputs = [value.get_node() for value in op.input_values()]
            data = [node for node in inputs if node.get_type_name() not in ("Constant", "Convert")]
            op = data[0] if len(data) == 1 else None
        if op is not None:
            return [op.get_friendly_name()]
    return []


def _by_neighbour(layer: Any, graph: dict[str, Any], targets: set[str]) -> list[str]:
    """It was renamed: the operations that read the output of the layer before it."""
    before, seen = [value.get_node() for value in layer.input_values()], set()
    while before:
        node = before.pop()
        if node.get_friendly_name() in seen or _fact(node, "layerType") == "Const":
            continue
        seen.add(node.get_friendly_name())
        known = [name for name in _originals(node) if name in graph]
        if known:
            return _after(graph[known[-1]], targets)
        before += [value.get_node() for value in node.input_values()]
    return []


def _after(op: Any, targets: set[str]) -> list[str]:
    """The nearest operations that multiply after an operation of the graph."""
    found, seen, ahead = [], set(), [op]
    while ahead:
        node = ahead.pop()
        for output in node.outputs():
            for taken in output.get_target_inputs():
                name = taken.get_node().get_friendly_name()
                if name in targets:
                    found.append(name)
                elif name not in seen:
                    ahead.append(taken.get_node())
                seen.add(name)
    return sorted(set(found))


def _originals(layer: Any) -> list[str]:
    return [name for name in _fact(layer, "originalLayersNames").split(",") if name]


def _fact(layer: Any, name: str) -> str:
    facts = layer.get_rt_info()
    if name not in facts:
        return ""
    value = facts[name]
    return str(value.astype(str) if hasattr(value, "astype") else value)
