"""The candidates for a module: each runtime in each precision, built, checked against the original, and timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from vivace.acceleration.modules.dropin import AcceleratedModule
from vivace.acceleration.modules.signature import FlatModule, Structure, flatten
from vivace.acceleration.modules.subject import Subject
from vivace.compression.layers import Int8Graph, int8_graph
from vivace.compression.quantize import has_attention
from vivace.errors import ExportError
from vivace.hardware import supported_precisions
from vivace.runtimes.modules.job import ModuleJob
from vivace.runtimes.table import REFERENCE, RUNTIMES, Variant, imported, is_quantized
from vivace.scratch import scratch_folder

__all__ = ["Care", "ModuleCandidate", "Workshop", "candidates_for", "difference", "leaf_count"]

# by how much outputs may differ from the original's, relative to their norm: a wrong conversion differs by 1. Of int8
# only the metric tells whether it is near enough, and it is made of a graph that was compared in float32
TOLERANCE = {"fp32": 0.01, "bf16": 0.2}
# of outputs that are whole numbers, the part that may differ: near ties
MAX_CHANGED = 0.02
RISK = {"fp32": 0, "bf16": 1, "int8": 2, "int8+bf16": 3}


@dataclass(frozen=True)
class ModuleCandidate:
    """A runtime and a precision that may replace a module."""

    runtime: str
    variant: Variant
    float_layers: tuple[str, ...] = ()
    """Layers of an int8 variant that compute in float."""
    network: str = ""
    """Name of a smaller network that replaces the module; empty: the module itself."""

    @property
    def precision(self) -> str:
        return self.variant.precision

    @property
    def name(self) -> str:
        more = ", channels last" * self.variant.channels_last + ", asymmetric" * self.variant.asymmetric
        if count := len(self.float_layers):
            more += f", {count} layer{'s' * (count > 1)} in float"
        network = f"{self.network}, " if self.network else ""
        return f"{network}{self.runtime} {self.precision}{more}"

    @property
    def risk(self) -> tuple[bool, int, int, bool]:
        """Sort key, from the smallest to the largest risk to what is computed."""
        return bool(self.network), RISK[self.precision], -len(self.float_layers), not self.variant.asymmetric

    @property
    def kind(self) -> str:
        """Of its work, for estimates of time."""
        if is_quantized(self.precision):
            return "int8"
        if self.runtime == REFERENCE:
            return "plain"
        return "compiler" if RUNTIMES[self.runtime].takes_network else "graph"


def candidates_for(device: torch.device) -> tuple[list[ModuleCandidate], dict[str, str]]:
    """The candidates on a device, quick ones first, and for those that are impossible here the reason.

    The module itself, which is the first baseline, is not among them.
    """
    found, missing = [], {}
    for row in sorted(RUNTIMES.values(), key=lambda row: (row.build_order, row.name)):
        for variant in row.module_variants if device.type in row.devices else ():
            candidate = ModuleCandidate(row.name, variant)
            absent = [name for name in variant.needs if find_spec(name) is None]
            if absent:
                missing[candidate.name] = f"{absent[0]} is not installed: pip install 'vivace[accelerate]'"
            elif variant.precision.endswith("bf16") and "bf16" not in supported_precisions(device):
                missing[candidate.name] = "this processor has no bf16 instructions"
            elif not (row.takes_network and variant == row.module_variants[0] and candidate.kind == "plain"):
                found.append(candidate)
    return found, missing


class Care(IntEnum):
    """How a graph is made: the quick way, unless what it computed was wrong."""

    USUAL = 0
    EXPORTED = 1
    """By torch.export, which is slower, and knows what depends on the number of samples."""
    CLOSED = 2
    """For the shapes of the example alone."""


class Workshop:
    """Builds candidates of one module."""

    def __init__(
        self,
        subject: Subject,
        calls: Sequence[Any],
        outputs: tuple[Structure, Sequence[Tensor]],
        open_sides: Sequence[frozenset[int]],
        calibration: Callable[[], Sequence[Sequence[Tensor]]],
        *,
        replaced: Subject | None = None,
    ) -> None:
        """calls: those that must be fast, the one that is timed first. outputs: what that one returns.

        replaced: the module in whose place that of `subject` is called; None: that itself.
        """
        self._subject, self._outputs = subject, outputs
        self._replaced = replaced or subject
        flattened = [call.flatten() for call in calls]
        self._inputs = flattened[0][1], flattened[0][0]
        # others have another structure: they go to the original
        alike = [place for place, (_, structure) in enumerate(flattened) if structure == self._inputs[0]]
        self._calls = [(calls[place].args, calls[place].kwargs) for place in alike]
        self._tensors = [flattened[place][0] for place in alike]
        self._open_sides, self._calibration = open_sides, calibration
        self._kept: dict[Care, dict[str, Any]] = {care: {} for care in Care}
        self.care: dict[str, Care] = {}
        """By runtime, where the usual is not enough."""
        self._no_graph = self._why_no_graph()

    def _why_no_graph(self) -> str | None:
        """Why no graph can be called like the module; None: one can."""
        (inputs, _), (outputs, tensors) = self._inputs, self._outputs
        if inputs.opaque_types():
            return f"a call has an argument of type {inputs.opaque_types()[0]}, which a graph does not take"
        if outputs.opaque_types():
            return f"it returns an object of type {outputs.opaque_types()[0]}, which a graph does not make"
        return None if tensors else "it returns no tensor"

    def build(self, candidate: ModuleCandidate, *, graph: Any = None) -> AcceleratedModule:
        """The candidate as a drop-in; graph: of its runtime's kind, in place of the one that would be made.

        Raises what its runtime raises, ExportError for what can't be a graph.
        """
        row = RUNTIMES[candidate.runtime]
        return AcceleratedModule(
            self._replaced.module,
            imported(str(row.module_runner)).convert(self._job(candidate, graph)),
            runtime=candidate.runtime,
            precision=candidate.precision,
            inputs=self._inputs,
            outputs=self._outputs,
            is_copy=self._replaced.is_copy,
            network=candidate.network,
        )

    def int8_layers(self, candidate: ModuleCandidate) -> Int8Graph:
        """The int8 graph of a candidate, whose layers can be reverted to float."""
        runner = imported(str(RUNTIMES[candidate.runtime].module_runner))
        with scratch_folder("layers") as folder:
            plain, quantized = folder / "plain", folder / "quantized"
            plain.mkdir()
            quantized.mkdir()
            runner.save_graphs(self._job(candidate, None), plain, quantized)
            return int8_graph(candidate.runtime, quantized, plain)

    def _job(self, candidate: ModuleCandidate, graph: Any) -> ModuleJob:
        row, flat, care = RUNTIMES[candidate.runtime], None, self.care.get(candidate.runtime, Care.USUAL)
        if not row.takes_network:
            if self._no_graph is not None:
                raise ExportError(self._no_graph)
            flat = FlatModule(self._subject.module, self._inputs[0]).eval()
        elif candidate.precision != row.precisions[0] and self._outputs[0].opaque_types():
            raise ExportError(f"it returns an object of type {self._outputs[0].opaque_types()[0]}, in float32 for sure")
        if candidate.variant.channels_last and not self._subject.is_copy:
            raise ExportError("the module can't be copied")
        return ModuleJob(
            module=self._subject.module,
            flat=flat,
            calls=self._calls,
            tensors=self._tensors,
            open_sides=[frozenset() if care is Care.CLOSED else sides for sides in self._open_sides],
            exported=care is Care.EXPORTED,
            precision=candidate.precision,
            asymmetric=candidate.variant.asymmetric,
            channels_last=candidate.variant.channels_last,
            transformer=has_attention(self._subject.module),
            calibration=self._calibration,
            graph=graph,
            kept=self._kept[care],
        )


def difference(expected: tuple[Structure, Sequence[Tensor]], found: Any, precision: str) -> str | None:
    """How outputs differ from the original's by more than their precision explains; None if they do not."""
    tensors, structure = flatten(found)
    if structure.any_objects() != expected[0].any_objects():
        return "its outputs have another structure"
    limit = TOLERANCE.get(precision, float("inf"))
    for place, (one, other) in enumerate(zip(expected[1], tensors, strict=True)):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"its output {place} is {other.dtype} {list(other.shape)} for {one.dtype} {list(one.shape)}"
        if not one.is_floating_point() and not one.is_complex():
            changed = float((one != other).float().mean()) if one.numel() else 0.0
            if precision == "fp32" and changed > MAX_CHANGED:
                return f"{100 * changed:.0f} % of its output {place} differ"
            continue
        same = one == other
        if not bool((one.isfinite() == other.isfinite()).all()):
            return f"its output {place} is not finite where the original's is"
        wide, others = one.to(torch.promote_types(one.dtype, torch.float32)), other.to(one.dtype)
        gap = (wide - others).masked_fill(same, 0).norm()
        size = wide.masked_fill(~wide.isfinite(), 0).norm()
        # outputs that are all about 0 have no relative error
        if not is_quantized(precision) and not float(gap) <= limit * float(size) + 1e-5 * one.numel() ** 0.5:
            return f"its output {place} differs by {100 * float(gap) / max(float(size), 1e-30):.1f} % of its norm"
    return None


def leaf_count(module: nn.Module) -> int:
    """Modules without parts: how long compilers take is about proportional."""
    return sum(1 for part in module.modules() if next(part.children(), None) is None)
