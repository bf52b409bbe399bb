"""The variants of a model, one row of VARIANTS for each runtime in each precision, and how they are built."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from vivace.bundle import Bundle, BundleInfo, derive_bundle, load_bundle
from vivace.compression.layers import Int8Graph, int8_graph
from vivace.compression.quantize import Int8Job
from vivace.errors import BundleError
from vivace.exporting.exporters import exporter_of
from vivace.hardware import supported_precisions
from vivace.runtimes.table import RUNTIMES, imported, is_quantized

__all__ = ["VARIANTS", "Builder", "Candidate", "Variant", "candidates_for"]


@dataclass(frozen=True)
class Variant:
    """A runtime and a precision."""

    runtime: str
    precision: str
    needs: tuple[str, ...] = ()
    """Modules of an optional dependency that must be installed."""
    asymmetric: bool = False
    """For int8: activations with negative values get a zero point."""


# each runtime's are in its row; the plain model first: it is needed as the baseline
VARIANTS = tuple(
    Variant(row.name, variant.precision, variant.needs, asymmetric=variant.asymmetric)
    for row in RUNTIMES.values()
    for variant in row.variants
)
# risk to accuracy, by how much is lost to rounding
RISK = {"fp32": 0, "bf16": 1, "fp16": 1, "int8": 2, "int8+bf16": 3}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A variant that may win: a runtime and a precision, of a network, with its quantization settings."""

    runtime: str
    precision: str
    network: str = ""
    """Name of a smaller network that replaces the model's own; empty: the model's own."""
    float_layers: tuple[str, ...] = ()
    """Layers of an int8 variant that compute in float."""
    asymmetric: bool = False
    """As in `Variant`."""

    @property
    def name(self) -> str:
        network = f"{self.network}, " if self.network else ""
        layers = (
            f", {len(self.float_layers)} layer{'s' * (len(self.float_layers) > 1)} in float"
            if self.float_layers
            else ""
        )
        return f"{network}{self.runtime} {self.precision}{', asymmetric' * self.asymmetric}{layers}"

    @property
    def is_exported(self) -> bool:
        """Whether building it writes more than the weights: a graph, or ranges of activations."""
        return bool(RUNTIMES[self.runtime].graph_files) or is_quantized(self.precision)

    @property
    def is_baseline(self) -> bool:
        """Whether what wins must be faster than it."""
        variants = RUNTIMES[self.runtime].variants
        return any(variant.is_baseline and variant.precision == self.precision for variant in variants)

    @property
    def risk(self) -> tuple[bool, int, int]:
        """Sort key, from the smallest to the largest risk to accuracy."""
        return bool(self.network), RISK[self.precision], -len(self.float_layers) - self.asymmetric


def candidates_for(
    device: torch.device, *, hurried: bool = False, own: bool = False
) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates that can be built here, and for each of the others the reason why it can't.

    hurried: those that are quick to build first, since there may be no time for all. own: for a network of the user's
    own, which other processes have as a graph alone.
    """
    found, missing = [], {}
    for variant in VARIANTS:
        candidate = Candidate(runtime=variant.runtime, precision=variant.precision, asymmetric=variant.asymmetric)
        absent = [name for name in variant.needs if find_spec(name) is None]
        if own and RUNTIMES[variant.runtime].takes_network:
            missing[candidate.name] = "it takes the network's own code, which the processes of a search do not have"
        elif absent:
            missing[candidate.name] = f"{absent[0]} is not installed: pip install 'vivace[accelerate]'"
        elif variant.precision.endswith("bf16") and "bf16" not in supported_precisions(device):
            missing[candidate.name] = "this processor has no bf16 instructions"
        else:
            found.append(candidate)
    if hurried:
        plain = found[0]
        found.sort(key=lambda candidate: (candidate is not plain, RUNTIMES[candidate.runtime].build_order))
    return found, missing


class Builder:
    """Builds candidates of one bundle in folders below `work`; what was built before is reused."""

    def __init__(self, bundle: Bundle, work: Path, calibrate_NHWC: Callable[[], np.ndarray]) -> None:
        """calibrate_NHWC: returns the calibration images, uint8; called whenever they are needed."""
        self._bundle, self._work, self._calibrate = bundle, work, calibrate_NHWC

    def folder(self, candidate: Candidate) -> Path:
        """The folder of a candidate, whether it is built or not."""
        plain = f"{candidate.runtime}-{candidate.precision}{'-asymmetric' * candidate.asymmetric}"
        if candidate.float_layers:
            plain += "-" + hashlib.sha256("\n".join(candidate.float_layers).encode()).hexdigest()[:8]
        return self._work / "candidates" / plain

    def build(self, candidate: Candidate) -> Bundle:
        """The candidate as a bundle. Raises what its exporter or quantizer raises."""
        folder = self.folder(candidate)
        if folder.exists():
            try:
                return load_bundle(folder)
            except BundleError:
                shutil.rmtree(folder)

        def add(into: Path) -> BundleInfo:
            if candidate.is_exported:
                self._add_files(candidate, into)
            return dataclasses.replace(
                self._bundle.info, runtime=candidate.runtime, precision=candidate.precision, parity={}
            )

        return derive_bundle(self._bundle, folder, add)

    def graph(self, runtime: str) -> Path:
        """The folder of the float32 graph for a runtime."""
        return self._made(runtime, lambda folder: exporter_of(runtime).write_graph(self._bundle, folder))

    def quantized(self, candidate: Candidate) -> Path:
        """The folder of a candidate's int8 graph without float layers, or of its ranges."""
        row, asymmetric = RUNTIMES[candidate.runtime], candidate.asymmetric
        quantizer = str(row.quantizer)

        def quantize(folder: Path) -> None:
            graph = self.graph(row.name) if row.graph_files else None
            job = Int8Job(bundle=self._bundle, graph=graph, images_NHWC=self._calibrate(), asymmetric=asymmetric)
            imported(quantizer)(job, folder)

        # by its quantizer: runtimes that share one, as those of torch do, share what it writes
        return self._made(f"{quantizer.partition(':')[2]}{'-asymmetric' * asymmetric}", quantize)

    def int8_graph(self, candidate: Candidate) -> Int8Graph:
        """The int8 graph of a candidate with its float32 graph, to which layers can be reverted."""
        return int8_graph(candidate.runtime, self.quantized(candidate), self.graph(candidate.runtime))

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder that `make` fills, once: it is complete or does not exist."""
        folder = self._work / "graphs" / name
        if not folder.exists():
            temporary = folder.with_name(f".{name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            make(temporary)
            temporary.rename(folder)
        return folder

    def _add_files(self, candidate: Candidate, into: Path) -> None:
        if candidate.float_layers:
            graph = self.int8_graph(candidate)
            graph.save(graph.with_float_layers(candidate.float_layers), into)
            return
        int8 = is_quantized(candidate.precision)
        source = self.quantized(candidate) if int8 else self.graph(candidate.runtime)
        for path in source.iterdir():
            shutil.copyfile(path, into / path.name)
