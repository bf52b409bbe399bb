"""A bundle as one file for another program: a PyTorch program, a compiled one, a model for phones or a GPU's engine.

Beside the file lies a .json of what whoever runs it must know: it lies without the bundle there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivace.bundle import Bundle, check_finite
from vivace.config import to_dict
from vivace.data.place import AnyData
from vivace.errors import ConfigError
from vivace.exporting.edge import load_executorch, load_litert, write_executorch, write_litert
from vivace.exporting.foreign import exporting
from vivace.exporting.graphs import traced, write_onnx, write_openvino
from vivace.exporting.parity import Parity, check_parity, measure_parity, parity_images
from vivace.exporting.progress import doing
from vivace.exporting.tensorrt import load_tensorrt, write_tensorrt
from vivace.files import atomic_file
from vivace.hardware import cpu_name
from vivace.outputs import check_export, write_sidecar
from vivace.runtimes import INPUT, OUTPUT, Classifier, is_quantized, onnx, openvino
from vivace.runtimes.aoti import compile_package
from vivace.runtimes.quiet import quiet
from vivace.scratch import scratch_folder

__all__ = ["FILES", "FORMS", "GRAPH_FORMS", "FileForm", "write_file"]

# these take no batches
ONE_IMAGE = ("executorch", "litert")


@dataclass(frozen=True)
class FileForm:
    """How a target's file is written, and run to be compared."""

    suffix: str
    write: Callable[[Bundle, Path], None]
    load: Callable[[Path], Classifier]
    companion: str | None = None
    """Suffix of a second file that the first one reads."""

    def names(self, out: Path) -> tuple[Path, ...]:
        """The file and what belongs to it."""
        return (out,) if self.companion is None else (out, out.with_suffix(self.companion))


def write_file(bundle: Bundle, out: Path, target: str, data: AnyData | None, cache_dir: Path | None) -> Parity:
    """Write the file of a target to `out` and its .json beside it, if it agrees with PyTorch; the certificate.

    Raises BundleError if a weight is NaN or infinite, ParityError, after which nothing was changed, ConfigError for
    int8 without images, OutputPathError where vivace did not write what is there, and what the target's writer raises.
    """
    form = FORMS[target]
    names = form.names(out)
    check_export(*names, inputs=[bundle.folder])
    # before a compiler works on it for half a minute
    check_finite(bundle.build_model())
    precision = _precision(bundle, target)
    if is_quantized(precision) and data is None:
        raise ConfigError(f"an int8 form is compared on real images: {bundle.folder}. Give `data`.")
    images, name = parity_images(bundle, data, cache_dir=cache_dir)
    with scratch_folder("export") as folder:
        written = Path(folder, "model" + form.suffix)
        doing(f"writing it for {target}")
        form.write(bundle, written)
        doing("comparing it with PyTorch")
        # read back: what is certified is what lies in the file
        parity = measure_parity(bundle, form.load(written), images, runtime=target, precision=precision, images=name)
        check_parity(parity)
        # again: it may have taken minutes
        check_export(*names, inputs=[bundle.folder])
        # the file that the others belong to comes last: with it alone nothing works
        for source, path in reversed(list(zip(form.names(written), names, strict=True))):
            with source.open("rb") as opened, atomic_file(path) as file:
                shutil.copyfileobj(opened, file)
    write_sidecar(out, _told(bundle, parity), *names[1:])
    return parity


def _told(bundle: Bundle, parity: Parity) -> dict[str, Any]:
    size, channels = bundle.preprocess.size, bundle.preprocess.channels
    named = parity.runtime in GRAPH_FORMS
    return {
        "target": parity.runtime,
        "model": bundle.info.architecture.name,
        "input": {
            **({"name": INPUT} if named else {}),
            "dtype": "uint8",
            "shape": ["N", size, size, channels],
            "one_image": parity.runtime in ONE_IMAGE,
        },
        "output": {
            **({"name": OUTPUT} if named else {}),
            "dtype": "float32",
            "shape": ["N", len(bundle.classes)],
            "what": "probabilities",
        },
        "preprocess": to_dict(bundle.preprocess),
        "parity": parity.to_dict(),
        "environment": {"torch": torch.__version__, **({"cpu": cpu_name()} if parity.runtime == "aoti" else {})},
        "classes": list(bundle.classes),
    }


def _precision(bundle: Bundle, target: str) -> str:
    # of onnx and openvino the weights are exported, and not the graph that may lie in the bundle
    return bundle.info.precision if bundle.info.runtime == target and target in FILES else "fp32"


def _write_pt2(bundle: Bundle, path: Path) -> None:
    with quiet(), exporting("pt2"):
        torch.export.save(traced(bundle), path)


def _load_pt2(path: Path) -> Classifier:
    """Of a file that was written here a moment ago: of a foreign one it would trust a pickle."""
    with quiet():
        return _of_torch(torch.export.load(path).module())


def _write_aoti(bundle: Bundle, path: Path) -> None:
    compile_package(bundle, _precision(bundle, "aoti"), path)


def _load_aoti(path: Path) -> Classifier:
    with quiet():
        return _of_torch(torch._inductor.aoti_load_package(str(path)))


def _of_torch(program: Callable[[torch.Tensor], torch.Tensor]) -> Classifier:
    @torch.inference_mode()
    def classify(images_NHWC: np.ndarray) -> np.ndarray:
        probs: np.ndarray = program(torch.from_numpy(images_NHWC.copy())).numpy()
        return probs

    return classify


# target → its file
FILES = {
    "pt2": FileForm(".pt2", _write_pt2, _load_pt2),
    "aoti": FileForm(".pt2", _write_aoti, _load_aoti),
    "executorch": FileForm(".pte", write_executorch, load_executorch),
    "litert": FileForm(".tflite", write_litert, load_litert),
    "tensorrt": FileForm(".engine", write_tensorrt, load_tensorrt),
}
# target → the file of a graph that is else a bundle's
GRAPH_FORMS = {
    "onnx": FileForm(".onnx", lambda bundle, path: write_onnx(bundle, path.parent), onnx.classifier_of),
    "openvino": FileForm(
        ".xml",
        lambda bundle, path: write_openvino(bundle, path.parent),
        lambda path: openvino.classifier_of(path, path.with_suffix(".bin"), "fp32"),
        companion=".bin",
    ),
}
FORMS = {**FILES, **GRAPH_FORMS}
