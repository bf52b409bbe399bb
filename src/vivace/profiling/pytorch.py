"""Layers of PyTorch, eager and compiled, by its profiler, with the kernels that oneDNN ran by its log.

The profiler reports a tree of operators with times and types. oneDNN's log reports, for each convolution and matrix
product in the same order, the kernel and its types, such as "brg_conv_fwd:avx10_1_512_amx" on bf16.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity

from vivace import systems
from vivace.profiling.profile import LayerTime
from vivace.profiling.worker import Job
from vivace.runtimes.inductor_private import profile_kernels
from vivace.runtimes.loading import Classifier, load_runtime
from vivace.runtimes.table import REFERENCE

__all__ = ["profile"]

CALL = "vivace: a call"
PRECISIONS = {
    "float": "fp32",
    "c10::BFloat16": "bf16",
    "c10::Half": "fp16",
    "signed char": "int8",
    "unsigned char": "int8",
    "c10::qint8": "int8",
    "c10::quint8": "int8",
    "f32": "fp32",
    "bf16": "bf16",
    "f16": "fp16",
    "s8": "int8",
    "u8": "int8",
}
# operator names after the namespace; not linear interpolation
MULTIPLIES = re.compile(r"::\w*?(conv\d|convolution|(?<![a-z])q?linear(?!\dd)|matmul|mm|scaled_dot_product|attention)")
CONVOLUTION = re.compile(r"conv")
# oneDNN's names for the two kinds
LOGGED = {"convolution": True, "deconvolution": True, "matmul": False, "inner_product": False}


def profile(job: Job) -> tuple[list[LayerTime], list[float]]:
    """(layers in the order in which they ran, ms of each call)."""
    if job.runtime == REFERENCE:
        _name_modules()
    else:
        profile_kernels()
    classify = load_runtime(job.runtime, job.bundle, device=torch.device("cpu"), precision=job.precision)
    for _ in range(max(job.warmup, 1)):
        classify(job.images_NHWC)
    calls_ms = []
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        for _ in range(job.calls):
            start = time.perf_counter()
            with record_function(CALL):
                classify(job.images_NHWC)
            calls_ms.append((time.perf_counter() - start) * 1e3)
    trace = job.folder / "trace.json"
    recorded.export_chrome_trace(str(trace))
    calls = [_rows(call) for call in _calls(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])]
    return _layers(calls, _logged(classify, job.images_NHWC, job.folder / "onednn.txt")), calls_ms


def _name_modules() -> None:
    """Record every module of the network as an event of the profile, with its name."""
    names: dict[nn.Module, str] = {}
    open_events: list[Any] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        for name, part in module.named_modules():
            names.setdefault(part, name)
        event = record_function(f"module {names[module] or type(module).__name__}")
        event.__enter__()
        open_events.append(event)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        open_events.pop().__exit__(None, None, None)

    nn.modules.module.register_module_forward_pre_hook(enter)
    nn.modules.module.register_module_forward_hook(leave)


@dataclass
class _Event:
    name: str
    start: float
    end: float
    types: list[str]
    is_operator: bool
    parts: list[_Event] = field(default_factory=list)

    @property
    def own_us(self) -> float:
        return self.end - self.start - sum(part.end - part.start for part in self.parts)

    @property
    def multiplies(self) -> bool:
        return self.is_operator and MULTIPLIES.search(self.name) is not None

    def walk(self) -> Iterator[_Event]:
        yield self
        for part in self.parts:
            yield from part.walk()


def _calls(events: list[dict[str, Any]]) -> list[_Event]:
    """The calls, each as the tree of its events in the calling thread."""
    taken = sorted(
        (event for event in events if event.get("cat") in ("cpu_op", "user_annotation")),
        key=lambda event: (event["ts"], -event["dur"]),
    )
    threads = {event["tid"] for event in taken if event["name"] == CALL}
    calls, trail = [], list[_Event]()
    for event in (event for event in taken if event["tid"] in threads):
        types = event.get("args", {}).get("Input type", [])
        name = event["name"]
        found = _Event(name, event["ts"], event["ts"] + event["dur"], types, bool(types) or name.startswith("graph_"))
        while trail and trail[-1].end <= found.start:
            trail.pop()
        if name == CALL:
            calls.append(found)
        elif trail:
            trail[-1].parts.append(found)
        trail.append(found)
    return calls


@dataclass
class _Row:
    layer: str
    kind: str
    types: list[str]
    multiplies: bool
    us: float = 0.0


def _rows(call: _Event) -> dict[tuple[str, str, int], _Row]:
    """Layers of a call: each product by itself, of other operators all of one kind in one module together."""
    rows: dict[tuple[str, str, int], _Row] = {}
    counts: dict[tuple[str, str], int] = defaultdict(int)

    def row_of(layer: str, event: _Event) -> _Row:
        kind = event.name
        number = counts[layer, kind] = counts[layer, kind] + 1 if event.multiplies else 0
        return rows.setdefault((layer, kind, number), _Row(layer, kind, event.types, event.multiplies))

    def visit(event: _Event, layer: str, row: _Row | None) -> None:
        if event.name.startswith("module "):
            layer = event.name.removeprefix("module ")
        inner = [part for part in event.walk() if part is not event and part.multiplies]
        if row is None or (event.multiplies and not row.multiplies):
            if event.multiplies:
                # conv2d calls convolution, which calls mkldnn_convolution: the last one is the kernel
                row = row_of(layer, inner[-1] if inner else event)
            elif event.is_operator and not inner:
                row = row_of(layer, event)
        if row is not None:
            row.us += event.own_us
        else:
            # time between the operators: Python, hooks and dispatch
            row_of("", _Event("Python", 0, 0, [], False)).us += event.own_us
        for part in event.parts:
            # casts by autocast are not part of the product
            visit(part, layer, None if row is not None and row.multiplies and part.name == "aten::to" else row)

    visit(call, "", None)
    return rows


def _layers(calls: list[dict[tuple[str, str, int], _Row]], logged: list[tuple[bool, str, str]]) -> list[LayerTime]:
    """Medians over the calls; a layer that is missing in a call counts as 0 there."""
    kernels = _kernels([row for row in calls[-1].values() if row.multiplies], logged)
    layers = []
    for key, row in calls[-1].items():
        kernel, of = kernels.get(id(row), (row.kind, PRECISIONS.get(row.types[0], "other") if row.types else "other"))
        layers.append(
            LayerTime(
                name=row.layer or row.kind,
                kind=row.kind,
                kernel=kernel,
                precision=of,
                ms=float(np.median([call[key].us if key in call else 0.0 for call in calls])) / 1e3,
                multiplies=row.multiplies,
            )
        )
    return layers


def _kernels(rows: list[_Row], logged: list[tuple[bool, str, str]]) -> dict[int, tuple[str, str]]:
    """id of a row → (kernel, precision) by oneDNN's log, for each kind of product if all of that kind were logged."""
    kernels: dict[int, tuple[str, str]] = {}
    for is_convolution in (True, False):
        mine = [row for row in rows if bool(CONVOLUTION.search(row.kind)) == is_convolution]
        lines = [line for line in logged if line[0] == is_convolution]
        # otherwise some were computed by MKL or by torch's own kernels
        if len(mine) == len(lines):
            for row, (_, kernel, type_read) in zip(mine, lines, strict=True):
                kernels[id(row)] = f"{kernel} {type_read}", PRECISIONS.get(type_read, "other")
    return kernels


def _logged(classify: Classifier, images_NHWC: np.ndarray, path: Path) -> list[tuple[bool, str, str]]:
    """(whether it is a convolution, kernel, input type) of each product of one call, by oneDNN's log."""
    systems.flush_c_output()
    # oneDNN logs to C's standard output
    before = os.dup(1)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 1)
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                classify(images_NHWC)
            systems.flush_c_output()
        finally:
            os.dup2(before, 1)
            os.close(before)
    products = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        # onednn_verbose,v1,primitive,exec,cpu,convolution,KERNEL,forward_inference,src:bf16::… wei:…
        parts = line.split(",")
        if len(parts) > 8 and parts[2:4] == ["primitive", "exec"] and parts[5] in LOGGED:
            read = re.match(r"src:(\w+):", parts[8])
            products.append((LOGGED[parts[5]], parts[6], read.group(1) if read else ""))
    return products
