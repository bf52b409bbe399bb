"""The runtimes, a row of facts each: all that the rest of the package asks about one (no torch, nothing imported here).

To add a runtime, add a row, and the modules that it names: what runs it, exports to it, quantizes for it, profiles it.
They are named as text, "package.module" or "package.module:name", and imported where they are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

__all__ = [
    "INPUT",
    "OUTPUT",
    "PORTABLE",
    "PRECISIONS",
    "REFERENCE",
    "REFERENCE_GRAPH",
    "RUNTIMES",
    "Deployment",
    "Runtime",
    "Variant",
    "imported",
    "is_quantized",
    "listed",
    "runnable",
    "with_graph",
]

# of every exported graph, the names of its tensors: images_NHWC uint8 and probs_NK float32
INPUT, OUTPUT = "images", "probs"
# the runtime that the others are compared with: the plain network in PyTorch
REFERENCE = "eager"
# whose float32 graph stands for a network of the user's own where its code is not at hand, and that graph beside others
PORTABLE, REFERENCE_GRAPH = "onnx", "reference.onnx"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A precision of a runtime that a search for the fastest tries."""

    precision: str
    needs: tuple[str, ...] = ()
    """Modules of an extra that must be installed to make it."""
    asymmetric: bool = False
    """In int8: activations have a zero point where they have negative values."""
    channels_last: bool = False
    """For any torch.nn.Module: images and weights of convolutions with the channels last in memory."""
    is_baseline: bool = False
    """Whether what is faster must be faster than this too."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a deployed folder, which has neither torch nor vivace, needs to know of its runtime."""

    least_version: str
    """Of its library: what deployed folders were run with; older ones read no such graph."""
    examples: tuple[str, ...] = ()
    """Templates that are copied beside the loader."""
    readmes: tuple[str, ...] = ()
    """Templates that follow README.md in it."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What is known of a runtime without importing it."""

    name: str
    """As in bundle.json and --to."""
    label: str
    """As its makers write it."""
    module: str | None
    """With `load(bundle, *, device, precision) -> Classifier`; None: it is exported to, and runs no bundle here."""
    takes_network: bool
    """Whether it builds the network from its weights, by torch; otherwise it takes a graph, and needs no torch."""
    precisions: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu",)
    library: str = "torch"
    """The distribution that provides it: its version is that of importlib.metadata."""
    extra: str | None = None
    """Of vivace, which installs the library."""
    fork_unsafe_library: str = ""
    """Library whose threads it can't do without in a forked process: programs that were compiled for a number of
    threads, a pool of its own. Empty: it runs there."""
    graph_files: tuple[str, ...] = ()
    """In a bundle: the graph, and what belongs to it. Empty: it has no graph there."""
    reads: tuple[str, ...] = ()
    """Suffixes of files that it may open without being told: a bundle's manifest must list them."""
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Precision → the settings that a graph is compiled with, in a deployment too."""
    compiled_cache: str = ""
    """Folder in the cache where it keeps compiled libraries, each sealed by SHA256. Empty: none."""

    exporter: str | None = None
    """Module that writes for it, see `exporting.exporters`."""
    file_suffixes: tuple[str, ...] = ()
    """Of an export as a file: that of the file, and of what the file reads."""
    export_help: str = ""
    """What an export gives, as the help says it."""
    export_fallback: str | None = None
    """Runtime that a bundle is written for where this one can't take the network."""
    one_image: bool = False
    """Whether exported files take one image at a time."""
    is_machine_code: bool = False
    """Whether exported files are compiled for this processor."""
    deployment: Deployment | None = None
    """None: a bundle of it is deployed as the first runtime that has one."""

    quantizer: str | None = None
    """Function `(Int8Job, folder)`, see `compression.quantize`."""
    layers: str | None = None
    """Class whose instances are a `compression.layers.Int8Graph`."""
    profiler: str | None = None
    """Module with `profile(job) -> (layers, ms of each call)`."""
    variants: tuple[Variant, ...] = ()
    """What a search tries, the plainest first."""
    module_runner: str | None = None
    """Module with `convert(job: ModuleJob) -> Program`, which runs any torch.nn.Module, see `runtimes.modules.job`."""
    module_variants: tuple[Variant, ...] = ()
    """What a search tries for any torch.nn.Module, the plainest first."""
    leads: bool = False
    """Whether others are hardly faster than this one in less than float32: a search for a module may end with it."""
    build_order: int = 99
    """Where a search has little time, lower ones are built first: compilers take longest, int8 has most to win."""


# of bundles and of modules alike
OF_OPENVINO = (
    Variant(precision="fp32", needs=("openvino",)),
    Variant(precision="bf16", needs=("openvino",)),
    Variant(precision="int8", needs=("openvino", "nncf")),
    # what does not multiply integers, such as sums and activations between them, in bf16
    Variant(precision="int8+bf16", needs=("openvino", "nncf")),
    # somewhat slower, and finer after SiLU and GELU, and for the pixels
    Variant(precision="int8", needs=("openvino", "nncf"), asymmetric=True),
    Variant(precision="int8+bf16", needs=("openvino", "nncf"), asymmetric=True),
)

_ROWS = (
    Runtime(
        name=REFERENCE,
        label="PyTorch",
        module="vivace.runtimes.eager",
        takes_network=True,
        precisions=("fp32", "bf16", "fp16"),
        devices=("cpu", "cuda", "mps"),
        reads=(".safetensors",),
        profiler="vivace.profiling.pytorch",
        variants=(Variant(precision="fp32", is_baseline=True), Variant(precision="bf16")),
        module_runner="vivace.runtimes.modules.eager",
        module_variants=(
            Variant(precision="fp32", is_baseline=True),
            Variant(precision="fp32", channels_last=True),
            Variant(precision="bf16"),
            Variant(precision="bf16", channels_last=True),
        ),
        build_order=2,
    ),
    Runtime(
        name="inductor",
        label="PyTorch, compiled by Inductor",
        module="vivace.runtimes.inductor",
        takes_network=True,
        precisions=("fp32", "bf16", "fp16", "int8"),
        devices=("cpu", "cuda", "mps"),
        fork_unsafe_library="torch",
        quantizer="vivace.compression.quantize:inductor_int8",
        profiler="vivace.profiling.pytorch",
        # its operators for int8 are none of those that a package compiled ahead can call
        variants=(Variant(precision="fp32", is_baseline=True), Variant(precision="int8", needs=("torchao",))),
        module_runner="vivace.runtimes.modules.inductor",
        module_variants=(Variant(precision="fp32", is_baseline=True), Variant(precision="bf16")),
        build_order=4,
    ),
    Runtime(
        name="aoti",
        label="AOTInductor",
        module="vivace.runtimes.aoti",
        takes_network=True,
        precisions=("fp32", "bf16", "int8"),
        fork_unsafe_library="torch",
        reads=(".pt2", ".so"),
        compiled_cache="aoti",
        exporter="vivace.exporting.aoti",
        file_suffixes=(".pt2",),
        export_help="a file that is compiled for this machine and this torch alone",
        is_machine_code=True,
        quantizer="vivace.compression.quantize:inductor_int8",
        # the same programs as the compiler makes in a process, and there at once in the next one
        variants=(Variant(precision="fp32"), Variant(precision="bf16")),
        build_order=3,
    ),
    Runtime(
        name="onnx",
        label="ONNX Runtime",
        module="vivace.runtimes.onnx",
        takes_network=False,
        # of an int8 graph the precision of the rest is in the graph itself
        precisions=("fp32", "int8"),
        library="onnxruntime",
        extra="accelerate",
        graph_files=("model.onnx",),
        reads=(".onnx", ".data"),
        exporter="vivace.exporting.onnx",
        file_suffixes=(".onnx",),
        export_help="a bundle that the other verbs take",
        deployment=Deployment(
            least_version="1.20",
            examples=("cpp/main.cpp", "cpp/CMakeLists.txt", "js/classify.mjs", "js/package.json"),
            readmes=("README-examples.md",),
        ),
        quantizer="vivace.compression.quantize:onnx_int8",
        layers="vivace.compression.onnx_layers:OnnxLayers",
        profiler="vivace.profiling.onnx",
        variants=(
            Variant(precision="fp32", needs=("onnxruntime", "onnxscript")),
            Variant(precision="int8", needs=("onnxruntime", "onnxscript", "onnx")),
        ),
        module_runner="vivace.runtimes.modules.onnx",
        module_variants=(Variant(precision="fp32", needs=("onnxruntime", "onnxscript")),),
        build_order=1,
    ),
    Runtime(
        name="openvino",
        label="OpenVINO",
        module="vivace.runtimes.openvino",
        takes_network=False,
        precisions=("fp32", "bf16", "int8", "int8+bf16"),
        library="openvino",
        extra="accelerate",
        fork_unsafe_library="openvino",
        graph_files=("model.xml", "model.bin"),
        reads=(".xml", ".bin"),
        # left to itself it takes bf16 where the processor has it; of an int8 graph this is for what was not quantized
        settings={
            precision: {"INFERENCE_PRECISION_HINT": hint}
            for precision, hint in {"fp32": "f32", "bf16": "bf16", "int8": "f32", "int8+bf16": "bf16"}.items()
        },
        exporter="vivace.exporting.openvino",
        file_suffixes=(".xml", ".bin"),
        export_help="a bundle that the other verbs take",
        export_fallback="onnx",
        deployment=Deployment(least_version="2025.2"),
        quantizer="vivace.compression.quantize:openvino_int8",
        layers="vivace.compression.openvino_layers:OpenVinoLayers",
        profiler="vivace.profiling.openvino",
        variants=OF_OPENVINO,
        module_runner="vivace.runtimes.modules.openvino",
        module_variants=OF_OPENVINO,
        leads=True,
        build_order=0,
    ),
    Runtime(
        name="executorch",
        label="ExecuTorch",
        module=None,
        takes_network=False,
        precisions=("fp32",),
        library="executorch",
        extra="executorch",
        exporter="vivace.exporting.executorch",
        file_suffixes=(".pte",),
        export_help="a file for phones",
        one_image=True,
    ),
    Runtime(
        name="litert",
        label="LiteRT",
        module=None,
        takes_network=False,
        precisions=("fp32",),
        library="ai-edge-litert",
        extra="litert",
        exporter="vivace.exporting.litert",
        file_suffixes=(".tflite",),
        export_help="a file for phones",
        one_image=True,
    ),
    Runtime(
        name="tensorrt",
        label="TensorRT",
        module=None,
        takes_network=False,
        precisions=("fp32",),
        devices=("cuda",),
        library="tensorrt",
        extra="tensorrt",
        exporter="vivace.exporting.tensorrt",
        file_suffixes=(".engine",),
        export_help="an engine for this kind of GPU",
    ),
)

RUNTIMES: dict[str, Runtime] = {row.name: row for row in _ROWS}
# what metrics may be measured in, and a runtime computes in
PRECISIONS = tuple(dict.fromkeys(precision for row in _ROWS for precision in row.precisions))


def runnable() -> list[str]:
    """Names of the runtimes that run a bundle here, in the table's order."""
    return [row.name for row in RUNTIMES.values() if row.module is not None]


def with_graph() -> list[str]:
    """Names of the runtimes whose bundles hold a graph, in the table's order."""
    return [row.name for row in RUNTIMES.values() if row.graph_files]


def is_quantized(precision: str) -> bool:
    """Whether a variant in this precision multiplies 8-bit integers: "int8", or "int8+bf16" with bf16 for the rest."""
    return precision.startswith("int8")


def imported(reference: str) -> Any:
    """What a row names: the module "package.module", or of it the attribute in "package.module:name"."""
    module, _, name = reference.partition(":")
    found = import_module(module)
    return getattr(found, name) if name else found


def listed(words: Iterable[str]) -> str:
    """ "a", "a or b", "a, b or c"."""
    *before, last = words
    return f"{', '.join(before)} or {last}" if before else last
