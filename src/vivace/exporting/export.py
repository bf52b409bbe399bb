"""vivace.export: a bundle in another form, checked against PyTorch before it is left on disk.

Each target writes a folder, or a file with its .json; one row of TARGETS each. What is there already is replaced only
if vivace wrote it (`vivace.outputs`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vivace.bundle import Bundle, BundleInfo, derive_bundle, load_bundle
from vivace.data.place import AnyData
from vivace.errors import ConfigError, ExportError, nearest
from vivace.exporting.deployment.folder import GRAPHS, write_deployment
from vivace.exporting.graphs import GRAPH_WRITERS
from vivace.exporting.parity import Parity, check_parity, measure_parity, parity_images
from vivace.exporting.progress import doing, reporting
from vivace.exporting.single_file import FILES, FORMS, GRAPH_FORMS, write_file
from vivace.exporting.state_dict import export_state_dict
from vivace.notices import warn
from vivace.outputs import check_export, check_folder, warn_of_replaced, writing
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
    to: str,
    out: str | Path,
    *,
    data: AnyData | None = None,
    cache_dir: str | Path | None = None,
) -> Exported:
    """Write a bundle in another form: "onnx" or "openvino" (a bundle again), "deploy" (a folder that classifies images
    without torch and without vivace), or a file.

    Files are "pt2" (a PyTorch program), "aoti" (compiled for this machine), "executorch" and "litert" (for phones),
    "onnx" if `out` ends in .onnx, "openvino" if it ends in .xml (its .bin lies beside it), and "state-dict"; beside
    each a .json tells classes and pixels. A bundle that computes by AOTInductor keeps its precision in "aoti"; the
    others are float32. A network that OpenVINO can't take becomes a bundle for ONNX Runtime, with a warning.
    out: the folder of the new bundle, or the file. data: images for the certificate of parity, as for `train`; without
    them they are generated. What disagrees with PyTorch is not left on disk.
    Raises ConfigError for an unknown target, MissingExtra if its library is not installed, ExportError if it can't take
    the network, ParityError if the form does not agree, BundleError if a weight is NaN or infinite, OutputPathError if
    `out` holds what vivace did not write or can't be written, VivaceError if the disk is full.
    """
    if to not in TARGETS:
        raise ConfigError(f"`to` is unknown: got {to!r}.{nearest(to, TARGETS)} Known: {', '.join(TARGETS)}.")
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    cache_path = Path(cache_dir) if cache_dir is not None else None
    out = Path(out)
    replaced = _check_out(bundle, to, out, data)
    with reporting(f"export to {to}"), writing(out):
        exported = TARGETS[to](bundle, out, data, cache_path)
    warn_of_replaced(out, replaced)
    return exported


def _check_out(bundle: Bundle, target: str, out: Path, data: AnyData | None) -> str | None:
    """What would be replaced, before any work. Raises OutputPathError, and ConfigError for another format's name."""
    known = {form.suffix: name for name, form in FORMS.items() if name != "aoti"} | {".pth": "state-dict"}
    own = FORMS[target].suffix if target in FORMS else ".pth"
    suffix = out.suffix.lower()
    if suffix in known and not (suffix == own and target != "deploy"):
        form = "a folder" if target == "deploy" else f"a folder or a {own} file" if target in GRAPH_FORMS else "a file"
        raise ConfigError(
            f"`to={target!r}` writes {form}: got {out}, a name for {known[suffix]}. Give another name, or "
            f"`to={known[suffix]!r}`."
        )
    if target == "deploy" or (target in GRAPH_FORMS and suffix != own):
        # the images in a deployment would be taken for data
        outside = [Path(data)] if target == "deploy" and data is not None and Path(data).is_dir() else []
        return check_folder(out, inputs=[bundle.folder], outside=outside)
    names = FORMS[target].names(out) if target in FORMS else (out,)
    return check_export(*names, inputs=[bundle.folder])


def _state_dict(bundle: Bundle, out: Path, data: AnyData | None, cache_dir: Path | None) -> Exported:
    path = export_state_dict(bundle, out)
    return Exported(path, "state-dict", path.stat().st_size, None)


def _as_file(bundle: Bundle, out: Path, data: AnyData | None, cache_dir: Path | None, target: str) -> Exported:
    parity = write_file(bundle, out, target, data, cache_dir)
    return Exported(out, target, sum(path.stat().st_size for path in FORMS[target].names(out)), parity)


def _onnx(bundle: Bundle, out: Path, data: AnyData | None, cache_dir: Path | None) -> Exported:
    if out.suffix.lower() == GRAPH_FORMS["onnx"].suffix:
        return _as_file(bundle, out, data, cache_dir, "onnx")
    return _as_bundle(bundle, out, data, cache_dir, "onnx")


def _openvino(bundle: Bundle, out: Path, data: AnyData | None, cache_dir: Path | None) -> Exported:
    if out.suffix.lower() == GRAPH_FORMS["openvino"].suffix:
        return _as_file(bundle, out, data, cache_dir, "openvino")
    try:
        return _as_bundle(bundle, out, data, cache_dir, "openvino")
    except ExportError as error:
        try:
            exported = _as_bundle(bundle, out, data, cache_dir, "onnx")
        except ExportError:
            # what was asked for is what the user is to read of
            raise error from None
        warn(f"{error} A bundle for ONNX Runtime was written in its place: {out}")
        return exported


def _deploy(bundle: Bundle, out: Path, data: AnyData | None, cache_dir: Path | None) -> Exported:
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
    data: AnyData | None,
    cache_dir: Path | None,
    runtime: str,
) -> Exported:
    images, name = parity_images(bundle, data, cache_dir=cache_dir)
    found: list[Parity] = []

    def add(folder: Path) -> BundleInfo:
        doing(f"writing the graph for {runtime}")
        GRAPH_WRITERS[runtime](bundle, folder)
        info = dataclasses.replace(bundle.info, runtime=runtime, precision="fp32")
        doing("comparing it with PyTorch")
        # from the files, as whoever uses them will
        names = tuple(path.name for path in folder.iterdir())
        classify = load_runtime(runtime, Bundle(folder, info, names), device=torch.device("cpu"), precision="fp32")
        found.append(measure_parity(bundle, classify, images, runtime=runtime, precision="fp32", images=name))
        check_parity(found[0])
        return dataclasses.replace(info, parity=found[0].to_dict())

    derived = derive_bundle(bundle, out, add)
    size = sum(path.stat().st_size for path in derived.folder.iterdir())
    return Exported(derived.folder, runtime, size, found[0])


TARGETS: dict[str, Callable[[Bundle, Path, AnyData | None, Path | None], Exported]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    **{target: functools.partial(_as_file, target=target) for target in FILES},
    "state-dict": _state_dict,
    "deploy": _deploy,
}
