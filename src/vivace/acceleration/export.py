"""vivace.export: a bundle in another form, checked against PyTorch before it is left on disk.

Each target writes files into a folder; one row of TARGETS each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vivace.acceleration.deployment.folder import GRAPHS, check_place, write_deployment
from vivace.acceleration.graphs import GRAPH_WRITERS
from vivace.acceleration.parity import Parity, check_parity, measure_parity, parity_images
from vivace.acceleration.single_file import FILES, write_file
from vivace.bundle import Bundle, BundleInfo, derive_bundle, export_state_dict, load_bundle
from vivace.errors import ConfigError, nearest
from vivace.runtimes import load_runtime
from vivace.scratch import scratch_folder

__all__ = ["TARGETS", "Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """What an export left on disk."""

    path: Path
    target: str
    num_bytes: int
    parity: Parity | None
    """None for a state dict, which is the weights themselves, and for int8 without images to compare on."""


def export(
    bundle: Bundle | str | Path,
    target: str,
    out: str | Path,
    *,
    data: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Exported:
    """Write a bundle in another form: "onnx" or "openvino" (a bundle again), "deploy" (a folder that classifies images
    without torch and without vivace), or a file.

    Files are "pt2" (a PyTorch program), "aoti" (compiled for this machine), "executorch" and "litert" (for phones),
    each with a .json beside it that tells classes and pixels; and "state-dict". A bundle that computes by AOTInductor
    keeps its precision in "aoti"; the others are float32.
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
    parity = write_file(bundle, out, target, data, cache_dir)
    return Exported(out, target, out.stat().st_size, parity)


def _onnx(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None) -> Exported:
    return _as_bundle(bundle, out, data, cache_dir, "onnx")


def _openvino(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None) -> Exported:
    return _as_bundle(bundle, out, data, cache_dir, "openvino")


def _deploy(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None) -> Exported:
    check_place(out)
    with scratch_folder("export") as temporary:
        if bundle.info.runtime not in GRAPHS:
            # without one of its own a bundle is deployed as the graph that most programs run
            bundle = load_bundle(_onnx(bundle, Path(temporary, "onnx"), data, cache_dir).path)
        parity = write_deployment(bundle, out, data, cache_dir)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Exported(out, "deploy", size, parity)


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


TARGETS: dict[str, Callable[[Bundle, Path, str | Path | None, Path | None], Exported]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    **{target: functools.partial(_as_file, target=target) for target in FILES},
    "state-dict": _state_dict,
    "deploy": _deploy,
}
