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

from vivace.acceleration.edge import load_executorch, load_litert, write_executorch, write_litert
from vivace.acceleration.engine import load_tensorrt, write_tensorrt
from vivace.acceleration.foreign import exporting
from vivace.acceleration.graphs import traced
from vivace.acceleration.parity import Parity, check_parity, measure_parity, parity_images
from vivace.bundle import Bundle, check_finite
from vivace.config import to_dict
from vivace.errors import ConfigError
from vivace.files import atomic_file, sha256_of, write_json
from vivace.hardware import cpu_name
from vivace.runtimes import Classifier, is_quantized
from vivace.runtimes.aoti import compile_package
from vivace.runtimes.quiet import quiet
from vivace.scratch import scratch_folder

__all__ = ["FILES", "FileForm", "write_file"]

# these take no batches
ONE_IMAGE = ("executorch", "litert")


@dataclass(frozen=True)
class FileForm:
    """How a target's file is written, and run to be compared."""

    suffix: str
    write: Callable[[Bundle, Path], None]
    load: Callable[[Path], Classifier]


def write_file(bundle: Bundle, out: Path, target: str, data: str | Path | None, cache_dir: Path | None) -> Parity:
    """Write the file of a target to `out` and its .json beside it, if it agrees with PyTorch; the certificate.

    Raises BundleError if a weight is NaN or infinite, ParityError, after which nothing was changed, ConfigError for
    int8 without images, and what the target's writer raises.
    """
    form = FILES[target]
    # before a compiler works on it for half a minute
    check_finite(bundle.build_model())
    precision = _precision(bundle, target)
    if is_quantized(precision) and data is None:
        raise ConfigError(f"an int8 form is compared on real images: {bundle.folder}. Give --data.")
    images, name = parity_images(bundle, data, cache_dir=cache_dir)
    with scratch_folder("export") as folder:
        written = Path(folder, "model" + form.suffix)
        form.write(bundle, written)
        # read back: what is certified is what lies in the file
        parity = measure_parity(bundle, form.load(written), images, runtime=target, precision=precision, images=name)
        check_parity(parity)
        with written.open("rb") as source, atomic_file(out) as file:
            shutil.copyfileobj(source, file)
    write_json(out.with_name(out.name + ".json"), _told(bundle, out, parity))
    return parity


def _told(bundle: Bundle, out: Path, parity: Parity) -> dict[str, Any]:
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


def _precision(bundle: Bundle, target: str) -> str:
    return bundle.info.precision if bundle.info.runtime == target else "fp32"


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
