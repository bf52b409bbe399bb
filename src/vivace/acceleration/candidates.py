"""The forms that a model may take, and how each is built: one row of FORMS for each runtime in each precision."""

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

__all__ = ["FORMS", "Builder", "Candidate", "Form", "candidates_for"]


@dataclass(frozen=True)
class Form:
    """A runtime in a precision."""

    runtime: str
    precision: str
    needs: tuple[str, ...] = ()
    """Modules of an extra that must be installed."""
    asymmetric: bool = False
    """In int8 of OpenVINO: activations have a zero point where they have negative values."""


# the plain one first: everything is measured against it
FORMS = (
    Form("eager", "fp32"),
    Form("eager", "bf16"),
    Form("inductor", "fp32"),
    # its operators for int8 are none of those that a package compiled ahead can call
    Form("inductor", "int8", ("torchao",)),
    # the same programs as the compiler makes in a process, and there at once in the next one
    Form("aoti", "fp32"),
    Form("aoti", "bf16"),
    Form("onnx", "fp32", ("onnxruntime", "onnxscript")),
    Form("onnx", "int8", ("onnxruntime", "onnxscript", "onnx")),
    Form("openvino", "fp32", ("openvino",)),
    Form("openvino", "bf16", ("openvino",)),
    Form("openvino", "int8", ("openvino", "nncf")),
    # what does not multiply integers, such as sums and activations between them, in bf16
    Form("openvino", "int8+bf16", ("openvino", "nncf")),
    # slower by some percent, and finer after SiLU and GELU, and for the pixels
    Form("openvino", "int8", ("openvino", "nncf"), asymmetric=True),
    Form("openvino", "int8+bf16", ("openvino", "nncf"), asymmetric=True),
)
# compilers take longest, and graphs in int8 have most to win
QUICK_TO_HAVE = ("openvino", "onnx", "eager", "aoti", "inductor")
# how far rounding may move an answer: fewer bits, more
RISK = {"fp32": 0, "bf16": 1, "fp16": 1, "int8": 2, "int8+bf16": 3}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A form of the model that may win."""

    runtime: str
    precision: str
    network: str = ""
    """A smaller network that takes the place of the model's own; empty: its own."""
    kept: tuple[str, ...] = ()
    """Layers that compute in float in an int8 form."""
    asymmetric: bool = False
    """As in Form."""

    @property
    def name(self) -> str:
        network = f"{self.network}, " if self.network else ""
        layers = f", {len(self.kept)} layer{'s' * (len(self.kept) > 1)} in float" if self.kept else ""
        return f"{network}{self.runtime} {self.precision}{', asymmetric' * self.asymmetric}{layers}"

    @property
    def is_exported(self) -> bool:
        """Whether more than the weights is written: a graph, or ranges of activations."""
        return self.runtime in GRAPH_WRITERS or is_quantized(self.precision)

    @property
    def risk(self) -> tuple[bool, int, int]:
        """In this order accuracy is put at risk."""
        return bool(self.network), RISK[self.precision], -len(self.kept) - self.asymmetric


def candidates_for(device: torch.device, *, hurried: bool = False) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates that can be built here, and for each of the others why it can't.

    hurried: those first that are quick to have, for there may be no time for all of them.
    """
    found, missing = [], {}
    for form in FORMS:
        candidate = Candidate(runtime=form.runtime, precision=form.precision, asymmetric=form.asymmetric)
        absent = [name for name in form.needs if find_spec(name) is None]
        if absent:
            missing[candidate.name] = f"{absent[0]} is not installed: pip install 'vivace[accelerate]'"
        elif form.precision.endswith("bf16") and "bf16" not in supported_precisions(device):
            missing[candidate.name] = "this processor has no arithmetic for bf16"
        else:
            found.append(candidate)
    if hurried:
        plain = found[0]
        found.sort(key=lambda candidate: (candidate is not plain, QUICK_TO_HAVE.index(candidate.runtime)))
    return found, missing


class Builder:
    """Builds candidates of one bundle into folders below `work`; what was built before is taken as it is."""

    def __init__(self, bundle: Bundle, work: Path, calibrate_NHWC: Callable[[], np.ndarray]) -> None:
        """calibrate_NHWC: gives the images to calibrate on, uint8, when they are needed, again and again."""
        self._bundle, self._work, self._calibrate = bundle, work, calibrate_NHWC

    def folder(self, candidate: Candidate) -> Path:
        """Where a candidate is, or will be."""
        plain = f"{candidate.runtime}-{candidate.precision}{'-asymmetric' * candidate.asymmetric}"
        if candidate.kept:
            plain += "-" + hashlib.sha256("\n".join(candidate.kept).encode()).hexdigest()[:8]
        return self._work / "candidates" / plain

    def build(self, candidate: Candidate) -> Bundle:
        """The candidate as a bundle. Raises whatever its exporter or quantizer raises."""
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
        """The folder that holds the float32 graph for a runtime."""
        return self._made(runtime, lambda folder: GRAPH_WRITERS[runtime](self._bundle, folder))

    def quantized_graph(self, candidate: Candidate) -> Path:
        """The folder that holds the int8 graph of a candidate, no layer in float."""
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
        """The int8 graph of a candidate and its plain one, between which layers can be exchanged."""
        return LAYERS[candidate.runtime](self.quantized_graph(candidate), self.graph(candidate.runtime))

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder of graphs that `make` fills, once; whole or not there."""
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
        if candidate.kept:
            graph = self.int8_graph(candidate)
            graph.save(graph.given_back(candidate.kept), into)
            return
        source = self.quantized_graph(candidate) if is_quantized(candidate.precision) else self.graph(runtime)
        for path in source.iterdir():
            shutil.copyfile(path, into / path.name)

    def _add_ranges(self, into: Path) -> None:
        # of Inductor and AOTInductor the same ones
        source = self._made("inductor-int8", lambda folder: quantize_inductor(self._bundle, folder, self._calibrate()))
        shutil.copyfile(source / RANGES, into / RANGES)
