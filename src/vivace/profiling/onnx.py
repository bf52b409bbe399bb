"""Layers of an ONNX graph by ONNX Runtime's profiler, which reports operators and types, but not instructions."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from typing import Any

import numpy as np

from vivace.errors import BundleError
from vivace.profiling.profile import LayerTime
from vivace.profiling.worker import Job
from vivace.runtimes.loading import graph_file, short_reason
from vivace.runtimes.onnx import GRAPH, open_session
from vivace.runtimes.table import INPUT, OUTPUT

__all__ = ["profile"]

PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8"}
MULTIPLIES = re.compile(r"Conv|MatMul|Gemm|Attention")
# operators with float input that they quantize themselves
QUANTIZES_ITSELF = re.compile(r"DynamicQuantize|QAttention")
# suffixes that its optimizer and its profiler append to a node's name
APPENDED = re.compile(r"(_nchwc)?(_token_\d+)?_kernel_time$")


def profile(job: Job) -> tuple[list[LayerTime], list[float]]:
    """(layers in the order in which they ran, ms of each call). Raises BundleError for a graph that can't be run."""
    path = graph_file(job.bundle, GRAPH, "onnx")
    session = open_session(path, profile_prefix=str(job.folder / "profile"))
    images = np.ascontiguousarray(job.images_NHWC)
    calls_ms = []
    for _ in range(job.warmup + job.calls):
        start = time.perf_counter()
        try:
            session.run([OUTPUT], {INPUT: images})
        except Exception as error:
            # onnxruntime has one exception class per cause, and no common base class
            raise BundleError(f"the graph can't be run: {path} ({short_reason(error)}). Export it again.") from None
        calls_ms.append((time.perf_counter() - start) * 1e3)
    with open(session.end_profiling(), encoding="utf-8") as file:  # noqa: PTH123 (a path that onnxruntime made)
        events = json.load(file)
    nodes: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["args"]["node_index"], event["name"]].append(event)
    layers = [_layer(found[-job.calls :]) for found in nodes.values()]
    return layers, calls_ms[job.warmup :]


def _layer(events: list[dict[str, Any]]) -> LayerTime:
    first = events[0]
    kind = first["args"]["op_name"]
    read, written = (
        [kind for kinds in first["args"].get(key, []) for kind in kinds]
        for key in ("input_type_shape", "output_type_shape")
    )
    of = PRECISIONS.get(read[0], "other") if read else "other"
    return LayerTime(
        name=APPENDED.sub("", first["name"]) or kind,
        kind=kind,
        kernel=f"{kind} {read[0] if read else ''}→{written[0] if written else ''}",
        precision="int8" if QUANTIZES_ITSELF.search(kind) else of,
        ms=float(np.median([event["dur"] for event in events])) / 1e3,
        multiplies=bool(MULTIPLIES.search(kind)),
    )
