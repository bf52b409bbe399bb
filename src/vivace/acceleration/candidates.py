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
from vivace.compression.layers import LAYERS, Int8Graph
from vivace.compression.quantize import has_attention, quantize_inductor, quantize_onnx, quantize_openvino
from vivace.errors import BundleError
from vivace.exporting.graphs import GRAPH_WRITERS
from vivace.hardware import supported_precisions
from vivace.runtimes import is_quantized
from vivace.runtimes.int8 import RANGES

__all__ = ["VARIANTS", "Builder", "Candidate", "Variant", "candidates_for"]


@dataclass(frozen=True)
class Variant:
    """A runtime and a precision."""

    runtime: str
    precision: str
    needs: tuple[str, ...] = ()
    """Modules of an optional dependency that must be installed."""
    asymmetric: bool = False
    """For int8 on OpenVINO: activations with negative values get a zero point."""


# the plain model first: it is needed as the baseline
VARIANTS = (
    Variant("eager", "fp32"),
    Variant("eager", "bf16"),
    Variant("inductor", "fp32"),
    # int8 is for inductor only: its int8 operators can't be called from a package that was compiled ahead of time
    Variant("inductor", "int8", ("torchao",)),
    # the same code as inductor's, compiled ahead of time: later processes load it without compiling
    Variant("aoti", "fp32"),
    Variant("aoti", "bf16"),
    Variant("onnx", "fp32", ("onnxruntime", "onnxscript")),
    Variant("onnx", "int8", ("onnxruntime", "onnxscript", "onnx")),
    Variant("openvino", "fp32", ("openvino",)),
    Variant("openvino", "bf16", ("openvino",)),
    Variant("openvino", "int8", ("openvino", "nncf")),
    # with bf16 for what is not an int8 product, such as sums and activations
    Variant("openvino", "int8+bf16", ("openvino", "nncf")),
    # a few percent slower, with finer steps after SiLU and GELU and for pixels
    Variant("openvino", "int8", ("openvino", "nncf"), asymmetric=True),
    Variant("openvino", "int8+bf16", ("openvino", "nncf"), asymmetric=True),
)
# for a short time budget: compilers take longest, and int8 graphs can gain most
BUILD_ORDER = ("openvino", "onnx", "eager", "aoti", "inductor")
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
        return self.runtime in GRAPH_WRITERS or is_quantized(self.precision)

    @property
    def risk(self) -> tuple[bool, int, int]:
        """Sort key, from the smallest to the largest risk to accuracy."""
        return bool(self.network), RISK[self.precision], -len(self.float_layers) - self.asymmetric


def candidates_for(device: torch.device, *, hurried: bool = False) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates that can be built here, and for each of the others the reason why it can't.

    hurried: those that are quick to build first, since there may be no time for all.
    """
    found, missing = [], {}
    for variant in VARIANTS:
        candidate = Candidate(runtime=variant.runtime, precision=variant.precision, asymmetric=variant.asymmetric)
        absent = [name for name in variant.needs if find_spec(name) is None]
        if absent:
            missing[candidate.name] = f"{absent[0]} is not installed: pip install 'vivace[accelerate]'"
        elif variant.precision.endswith("bf16") and "bf16" not in supported_precisions(device):
            missing[candidate.name] = "this processor has no bf16 instructions"
        else:
            found.append(candidate)
    if hurried:
        plain = found[0]
        found.sort(key=lambda candidate: (candidate is not plain, BUILD_ORDER.index(candidate.runtime)))
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
            if candidate.runtime in GRAPH_WRITERS:
                self._add_graph(candidate, into)
            elif is_quantized(candidate.precision):
                self._add_ranges(into)
            return dataclasses.replace(
                self._bundle.info, runtime=candidate.runtime, precision=candidate.precision, parity={}
            )

        return derive_bundle(self._bundle, folder, add)

    def graph(self, runtime: str) -> Path:
        """The folder of the float32 graph for a runtime."""
        return self._made(runtime, lambda folder: GRAPH_WRITERS[runtime](self._bundle, folder))

    def quantized_graph(self, candidate: Candidate) -> Path:
        """The folder of a candidate's int8 graph, without float layers."""
        runtime, asymmetric = candidate.runtime, candidate.asymmetric

        def quantize(folder: Path) -> None:
            source, images = self.graph(runtime), self._calibrate()
            if runtime == "onnx":
                quantize_onnx(source, folder, images)
            else:
                transformer = has_attention(self._bundle.build_model())
                quantize_openvino(source, folder, images, transformer=transformer, asymmetric=asymmetric)

        return self._made(f"{runtime}-int8{'-asymmetric' * asymmetric}", quantize)

    def int8_graph(self, candidate: Candidate) -> Int8Graph:
        """The int8 graph of a candidate with its float32 graph, to which layers can be reverted."""
        return LAYERS[candidate.runtime](self.quantized_graph(candidate), self.graph(candidate.runtime))

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

    def _add_graph(self, candidate: Candidate, into: Path) -> None:
        runtime = candidate.runtime
        if candidate.float_layers:
            graph = self.int8_graph(candidate)
            graph.save(graph.with_float_layers(candidate.float_layers), into)
            return
        source = self.quantized_graph(candidate) if is_quantized(candidate.precision) else self.graph(runtime)
        for path in source.iterdir():
            shutil.copyfile(path, into / path.name)

    def _add_ranges(self, into: Path) -> None:
        # Inductor and AOTInductor share them
        source = self._made("inductor-int8", lambda folder: quantize_inductor(self._bundle, folder, self._calibrate()))
        shutil.copyfile(source / RANGES, into / RANGES)
