"""vivace.export: a bundle in another form, checked against PyTorch before it is left on disk.

Each target writes files into a folder; one row of TARGETS each.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivace.acceleration.edge import load_executorch, load_litert, write_executorch, write_litert
from vivace.acceleration.foreign import exporting
from vivace.acceleration.parity import Parity, check_parity, measure_parity, parity_images
from vivace.bundle import Bundle, BundleInfo, derive_bundle, export_state_dict, load_bundle
from vivace.config import to_dict
from vivace.errors import ConfigError, MissingExtra, nearest
from vivace.files import atomic_file, sha256_of, write_json
from vivace.hardware import cpu_name
from vivace.runtimes import Classifier, is_quantized, load_runtime
from vivace.runtimes.aoti import compile_package
from vivace.runtimes.graph import DYNAMIC_SHAPES, deployed_graph
from vivace.runtimes.onnx import GRAPH as ONNX_GRAPH
from vivace.runtimes.openvino import GRAPH as OPENVINO_GRAPH
from vivace.runtimes.openvino import library
from vivace.runtimes.quiet import quiet

__all__ = ["GRAPH_WRITERS", "TARGETS", "Exported", "export"]

# of ONNX: what runtimes of the last two years read
OPSET = 20
# these take no batches
ONE_IMAGE = ("executorch", "litert")


@dataclass(frozen=True)
class Exported:
    """What an export left on disk."""

    path: Path
    target: str
    num_bytes: int
    parity: Parity | None
    """None for a state dict, which is the weights themselves."""


@dataclass(frozen=True)
class FileForm:
    """How a target's file is written, and run to be compared."""

    suffix: str
    write: Callable[[Bundle, Path], None]
    load: Callable[[Path], Classifier]


def export(
    bundle: Bundle | str | Path,
    target: str,
    out: str | Path,
    *,
    data: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Exported:
    """Write a bundle in another form: "onnx" or "openvino" (a bundle again); a file for all others.

    These are "pt2" (a PyTorch program), "aoti" (compiled for this machine), "executorch" and "litert" (for phones), each
    with a .json beside it that tells classes and pixels, and "state-dict". A bundle that computes by AOTInductor keeps
    its precision in "aoti"; the others are float32.
    out: the folder of the new bundle, or the file. data: images for the certificate of parity, as for `train`; without
    them they are generated. What disagrees with PyTorch is not left on disk.
    Raises ConfigError for an unknown target, MissingExtra if its library is not installed, ExportError if it can't take
    the network, ParityError if the form does not agree, BundleError if a weight is NaN or infinite.
    """
    if target not in TARGETS:
        raise ConfigError(f"--to is unknown: got {target!r}.{nearest(target, TARGETS)} Known: {', '.join(TARGETS)}.")
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    cache_path = Path(cache_dir) if cache_dir is not None else None
    return TARGETS[target](bundle, Path(out), data, cache_path)


def _state_dict(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None) -> Exported:
    path = export_state_dict(bundle, out)
    return Exported(path, "state-dict", path.stat().st_size, None)


def _as_file(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None, target: str) -> Exported:
    form = FILES[target]
    precision = bundle.info.precision if bundle.info.runtime == target else "fp32"
    if is_quantized(precision) and data is None:
        raise ConfigError(f"an int8 form is compared on real images: {bundle.folder}. Give --data.")
    images, name = parity_images(bundle, data, cache_dir=cache_dir)
    with tempfile.TemporaryDirectory(prefix="vivace-export-") as folder:
        written = Path(folder, "model" + form.suffix)
        form.write(bundle, written)
        # read back: what is certified is what lies in the file
        parity = measure_parity(bundle, form.load(written), images, runtime=target, precision=precision, images=name)
        check_parity(parity)
        with written.open("rb") as source, atomic_file(out) as file:
            shutil.copyfileobj(source, file)
    write_json(out.with_name(out.name + ".json"), _told(bundle, out, parity))
    return Exported(out, target, out.stat().st_size, parity)


def _told(bundle: Bundle, out: Path, parity: Parity) -> dict[str, Any]:
    """What whoever runs the file elsewhere must know: it lies without the bundle there."""
    size, channels = bundle.preprocess.size, bundle.preprocess.channels
    return {
        "format": "vivace-export",
        "target": parity.runtime,
        "file": out.name,
        "sha256": sha256_of(out),
        "bytes": out.stat().st_size,
        "model": bundle.info.architecture.name,
        "input": {"dtype": "uint8", "shape": ["N", size, size, channels], "one_image": parity.runtime in ONE_IMAGE},
        "output": {"dtype": "float32", "shape": ["N", len(bundle.classes)], "what": "probabilities"},
        "preprocess": to_dict(bundle.preprocess),
        "parity": parity.to_dict(),
        "environment": {"torch": torch.__version__, **({"cpu": cpu_name()} if parity.runtime == "aoti" else {})},
        "classes": list(bundle.classes),
    }


def _write_pt2(bundle: Bundle, path: Path) -> None:
    with quiet(), exporting("pt2"):
        torch.export.save(_traced(bundle), path)


def _load_pt2(path: Path) -> Classifier:
    """Of a file that was written here a moment ago: of a foreign one it would trust a pickle."""
    with quiet():
        return _of_torch(torch.export.load(path).module())


def _write_aoti(bundle: Bundle, path: Path) -> None:
    compile_package(bundle, bundle.info.precision if bundle.info.runtime == "aoti" else "fp32", path)


def _load_aoti(path: Path) -> Classifier:
    with quiet():
        return _of_torch(torch._inductor.aoti_load_package(str(path)))


def _of_torch(program: Callable[[torch.Tensor], torch.Tensor]) -> Classifier:
    @torch.inference_mode()
    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        probs: np.ndarray = program(torch.from_numpy(images_NHWC.copy())).numpy()
        return probs

    return classify


def _onnx(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None) -> Exported:
    return _as_bundle(bundle, out, data, cache_dir, "onnx")


def _openvino(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None) -> Exported:
    return _as_bundle(bundle, out, data, cache_dir, "openvino")


def _as_bundle(
    bundle: Bundle,
    out: Path,
    data: str | Path | None,
    cache_dir: Path | None,
    runtime: str,
) -> Exported:
    images, name = parity_images(bundle, data, cache_dir=cache_dir)
    found: list[Parity] = []

    def add(folder: Path) -> BundleInfo:
        GRAPH_WRITERS[runtime](bundle, folder)
        info = dataclasses.replace(bundle.info, runtime=runtime, precision="fp32")
        # from the files, as whoever uses them will
        names = tuple(path.name for path in folder.iterdir())
        classify = load_runtime(runtime, Bundle(folder, info, names), device=torch.device("cpu"), precision="fp32")
        found.append(measure_parity(bundle, classify, images, runtime=runtime, precision="fp32", images=name))
        check_parity(found[0])
        return dataclasses.replace(info, parity=found[0].to_dict())

    derived = derive_bundle(bundle, out, add)
    size = sum(path.stat().st_size for path in derived.folder.iterdir())
    return Exported(derived.folder, runtime, size, found[0])


def _traced(bundle: Bundle) -> Any:
    graph, example = deployed_graph(bundle)
    return torch.export.export(graph, (example,), dynamic_shapes=DYNAMIC_SHAPES)


def _write_onnx(bundle: Bundle, folder: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtra("onnxscript", "accelerate", "an export to ONNX") from None
    graph, example = deployed_graph(bundle)
    with quiet(), exporting("onnx"):
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["probs"],
            dynamic_shapes=DYNAMIC_SHAPES,
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(folder / ONNX_GRAPH, external_data=False)


def _write_openvino(bundle: Bundle, folder: Path) -> None:
    openvino = library("an export to OpenVINO")
    with quiet(), exporting("openvino"):
        model = openvino.convert_model(_traced(bundle))
        # float32 as the weights are: a smaller file is a step of its own, with its own check
        openvino.save_model(model, folder / OPENVINO_GRAPH, compress_to_fp16=False)


# runtime → writes its graph, float32, into a folder
GRAPH_WRITERS: dict[str, Callable[[Bundle, Path], None]] = {"onnx": _write_onnx, "openvino": _write_openvino}
# target → a single file
FILES = {
    "pt2": FileForm(".pt2", _write_pt2, _load_pt2),
    "aoti": FileForm(".pt2", _write_aoti, _load_aoti),
    "executorch": FileForm(".pte", write_executorch, load_executorch),
    "litert": FileForm(".tflite", write_litert, load_litert),
}
TARGETS: dict[str, Callable[[Bundle, Path, str | Path | None, Path | None], Exported]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    **{target: functools.partial(_as_file, target=target) for target in FILES},
    "state-dict": _state_dict,
}
