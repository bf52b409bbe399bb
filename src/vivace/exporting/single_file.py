"""A bundle as one file for another program: a PyTorch program, a compiled one, a model for phones or a GPU's engine.

A .json beside the file has what is needed to run it without the bundle: classes, preprocessing, tensors.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from vivace.bundle import Bundle
from vivace.config import to_dict
from vivace.data.place import AnyData
from vivace.errors import ConfigError
from vivace.exporting import pt2
from vivace.exporting.exporters import Exporter, exporter_of
from vivace.exporting.parity import Parity, check_parity, measure_parity, parity_images
from vivace.exporting.progress import doing
from vivace.files import atomic_file
from vivace.hardware import cpu_name
from vivace.outputs import check_export, write_sidecar
from vivace.runtimes.table import INPUT, OUTPUT, RUNTIMES, is_quantized
from vivace.scratch import scratch_folder
from vivace.uncertainty.decide import Decider

__all__ = ["PROGRAM", "file_targets", "names_of", "suffixes_of", "write_file"]

# of PyTorch itself, and so no runtime's
PROGRAM = "pt2"


def file_targets() -> list[str]:
    """Targets that write a file and nothing else."""
    rows = (row for row in RUNTIMES.values() if row.exporter is not None and not row.graph_files)
    return [PROGRAM, *(row.name for row in rows)]


def write_file(bundle: Bundle, out: Path, target: str, data: AnyData | None, cache_dir: Path | None) -> Parity:
    """Write the file of a target to `out` and its .json beside it, if it agrees with PyTorch; the certificate.

    Raises BundleError if a weight is NaN or infinite, ParityError, after which nothing was changed, ConfigError for
    int8 without images, OutputPathError where vivace did not write what is there, and what the target's writer raises.
    """
    exporter: Exporter = pt2 if target == PROGRAM else exporter_of(target)
    names = names_of(target, out)
    check_export(*names, inputs=[bundle.folder])
    # before a compiler works on it for half a minute
    bundle.check_finite()
    precision = _precision(bundle, target)
    if is_quantized(precision) and data is None:
        raise ConfigError(f"an int8 variant is compared on real images: {bundle.folder}. Give `data`.")
    images, name = parity_images(bundle, data, cache_dir=cache_dir)
    with scratch_folder("export") as folder:
        written = Path(folder, "model" + suffixes_of(target)[0])
        doing(f"writing it for {target}")
        exporter.write_file(bundle, written)
        doing("comparing it with PyTorch")
        # read back: the certificate is for the file itself
        classify = exporter.load_file(written)
        parity = measure_parity(bundle, classify, images, runtime=target, precision=precision, images=name)
        check_parity(parity)
        # again: it may have taken minutes
        check_export(*names, inputs=[bundle.folder])
        # the file that the others belong to comes last: with it alone nothing works
        for source, path in reversed(list(zip(names_of(target, written), names, strict=True))):
            with source.open("rb") as opened, atomic_file(path) as file:
                shutil.copyfileobj(opened, file)
    write_sidecar(out, _told(bundle, parity), *names[1:])
    return parity


def _told(bundle: Bundle, parity: Parity) -> dict[str, Any]:
    size, channels = bundle.preprocess.size, bundle.preprocess.channels
    row, uncertainty = RUNTIMES.get(parity.runtime), bundle.uncertainty()
    named = row is not None and bool(row.graph_files)
    return {
        "target": parity.runtime,
        "model": bundle.info.architecture.name,
        "input": {
            **({"name": INPUT} if named else {}),
            "dtype": bundle.preprocess.dtype,
            "shape": ["N", size, size, channels],
            "one_image": row is not None and row.one_image,
        },
        "output": {
            **({"name": OUTPUT} if named else {}),
            "dtype": "float32",
            "shape": ["N", len(bundle.classes)],
            "what": "probabilities",
        },
        "preprocess": to_dict(bundle.preprocess),
        **({} if uncertainty is None else {"uncertainty": Decider(uncertainty).told()}),
        "parity": parity.to_dict(),
        "environment": {"torch": torch.__version__, **({"cpu": cpu_name()} if row and row.is_machine_code else {})},
        "classes": list(bundle.classes),
    }


def _precision(bundle: Bundle, target: str) -> str:
    # for a runtime with graphs the weights are exported, not the bundle's own graph
    own = bundle.info.runtime == target and target in file_targets()
    return bundle.info.precision if own else "fp32"


def suffixes_of(target: str) -> tuple[str, ...]:
    """Of a target's file, and of what the file reads."""
    return (".pt2",) if target == PROGRAM else RUNTIMES[target].file_suffixes


def names_of(target: str, out: Path) -> tuple[Path, ...]:
    """The file of a target, and what belongs to it."""
    return (out, *(out.with_suffix(suffix) for suffix in suffixes_of(target)[1:]))
