"""vivace.export: a bundle for another runtime or as a file, compared with PyTorch before it is kept.

A target is a runtime that has an exporter, one of PyTorch's own formats, a deployment, or a page for browsers. Each
writes a folder, or a file with its .json. What is there already is replaced only if vivace wrote it (`vivace.outputs`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace import owned
from vivace.bundle import Bundle, load_bundle
from vivace.data.place import AnyData, Data
from vivace.errors import ConfigError, ExportError, nearest
from vivace.exporting.deployment.folder import write_deployment
from vivace.exporting.graph_bundle import with_graph_for
from vivace.exporting.parity import Parity, parity_images
from vivace.exporting.progress import reporting
from vivace.exporting.single_file import file_targets, names_of, suffixes_of, write_file
from vivace.exporting.state_dict import export_state_dict
from vivace.exporting.web.folder import check_browser, write_page
from vivace.exporting.web.runtime import web_runtime
from vivace.notices import warn
from vivace.outputs import check_export, check_folder, warn_of_replaced, writing
from vivace.runtimes.own_code import with_code
from vivace.runtimes.table import PORTABLE, RUNTIMES, is_quantized, with_graph
from vivace.scratch import scratch_folder

__all__ = ["Exported", "export", "targets"]

STATE_DICT, DEPLOYMENT, WEB = "state-dict", "deploy", "web"
# of folders that are no bundle
# what their folders hold; the others', a bundle
KINDS = {DEPLOYMENT: owned.DEPLOYMENT, WEB: owned.PAGE}
FOLDERS = tuple(KINDS)
WEIGHTS_SUFFIX = ".pth"


@dataclass(frozen=True)
class Exported:
    """What an export left on disk."""

    path: Path
    target: str
    num_bytes: int
    parity: Parity | None
    """None for a state dict, which is the weights themselves, and for int8 without images to compare on."""
    verified: tuple[str, ...] = ()
    """Of a page for browsers: what was checked without a browser, in a line each."""
    unverified: tuple[str, ...] = ()
    """What was not."""


def export(
    bundle: Bundle | str | Path,
    to: str,
    out: str | Path,
    *,
    data: AnyData | None = None,
    model: Any = None,
    onnxruntime_web: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Exported:
    """Export a bundle: for a runtime that has graphs ("onnx", "openvino") as a bundle again, as "deploy" (a
    folder that classifies images without torch and without vivace) or "web" (a page that classifies them in the
    browser), or a file.

    Files are "pt2" (a PyTorch program), "state-dict", those for runtimes that have no graph in a bundle (`targets`
    lists all), and graphs where `out` ends as their file does: .onnx, or .xml with its .bin beside it; beside each a
    .json tells classes and pixels. A bundle that computes by AOTInductor keeps its precision in "aoti"; the others are
    float32. A network that OpenVINO can't take becomes a bundle for ONNX Runtime, with a warning.
    out: the folder of the new bundle, or the file. data: images for the certificate of parity, as for `train`; without
    them they are generated. model: the code of a network of your own, as for `load`, which targets other than graphs
    and state dicts need. onnxruntime_web: for "web", the package of npm that computes it, as a folder or an archive;
    None: from the cache, or by npm. What disagrees with PyTorch is not left on disk.
    Raises ConfigError for an unknown target, MissingExtra if its library is not installed, ExportError if it can't take
    the network, ParityError if it disagrees with PyTorch, BundleError if a weight is NaN or infinite, OutputPathError
    if `out` holds what vivace did not write or can't be written, DownloadError if npm is missing or fails, or a hash
    is another one, VivaceError if the disk is full.
    """
    known = targets()
    if to not in known:
        raise ConfigError(f"`to` is unknown: got {to!r}.{nearest(to, known)} Known: {', '.join(known)}.")
    if onnxruntime_web is not None and to != WEB:
        raise ConfigError(f"`onnxruntime_web` goes with `to={WEB!r}`: got `to={to!r}`. Leave it out.")
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    if model is not None:
        bundle = with_code(bundle, model)
    cache_path = Path(cache_dir) if cache_dir is not None else None
    out = Path(out)
    replaced = _check_out(bundle, to, out, data)
    with reporting(f"export to {to}"), writing(out):
        if to == WEB:
            given = None if onnxruntime_web is None else Path(onnxruntime_web)
            exported = _web(bundle, out, data, cache_path, given)
        else:
            exported = _write(bundle, to, out, data, cache_path)
    warn_of_replaced(out, replaced)
    return exported


def targets() -> list[str]:
    """What `export` writes, by name: bundles of other runtimes, then files, then folders that are no bundle."""
    return [*with_graph(), *file_targets(), STATE_DICT, *FOLDERS]


def _write(bundle: Bundle, target: str, out: Path, data: AnyData | None, cache_dir: Path | None) -> Exported:
    if target == STATE_DICT:
        return _state_dict(bundle, out)
    if target == DEPLOYMENT:
        return _deploy(bundle, out, data, cache_dir)
    if target in file_targets() or out.suffix.lower() == suffixes_of(target)[0]:
        return _as_file(bundle, out, data, cache_dir, target)
    return _as_bundle_or_fallback(bundle, out, data, cache_dir, target)


def _check_out(bundle: Bundle, target: str, out: Path, data: AnyData | None) -> str | None:
    """What would be replaced, before any work. Raises OutputPathError, and ConfigError for another format's name."""
    files = [*file_targets(), *with_graph()]
    known = {WEIGHTS_SUFFIX: STATE_DICT}
    for name in files:
        # where two have the same one, the first
        known.setdefault(suffixes_of(name)[0], name)
    own = suffixes_of(target)[0] if target in files else WEIGHTS_SUFFIX
    suffix = out.suffix.lower()
    has_graph, deploys = target in with_graph(), target in FOLDERS
    if suffix in known and not (suffix == own and not deploys):
        form = "a folder" if deploys else f"a folder or a {own} file" if has_graph else "a file"
        raise ConfigError(
            f"`to={target!r}` writes {form}: got {out}, a name for {known[suffix]}. Give another name, or "
            f"`to={known[suffix]!r}`."
        )
    if target == WEB:
        check_browser(bundle)
    if deploys or (has_graph and suffix != own):
        # the images in such a folder would be taken for data
        given = None if data is None or Data.of(data).is_object else Path(str(Data.of(data)))
        outside = [given] if deploys and given is not None and given.is_dir() else []
        kind = KINDS.get(target, owned.BUNDLE)
        return check_folder(out, inputs=[bundle.folder], outside=outside, kind=kind, classes=bundle.classes)
    names = names_of(target, out) if target in files else (out,)
    return check_export(*names, inputs=[bundle.folder], classes=bundle.classes)


def _state_dict(bundle: Bundle, out: Path) -> Exported:
    path = export_state_dict(bundle, out)
    return Exported(path, STATE_DICT, path.stat().st_size, None)


def _as_file(bundle: Bundle, out: Path, data: AnyData | None, cache_dir: Path | None, target: str) -> Exported:
    parity = write_file(bundle, out, target, data, cache_dir)
    return Exported(out, target, sum(path.stat().st_size for path in names_of(target, out)), parity)


def _as_bundle_or_fallback(
    bundle: Bundle, out: Path, data: AnyData | None, cache_dir: Path | None, runtime: str
) -> Exported:
    fallback = RUNTIMES[runtime].export_fallback
    try:
        return _as_bundle(bundle, out, data, cache_dir, runtime)
    except ExportError as error:
        if fallback is None:
            raise
        try:
            exported = _as_bundle(bundle, out, data, cache_dir, fallback)
        except ExportError:
            # what was asked for is what the user is to read of
            raise error from None
        warn(f"{error} A bundle for {RUNTIMES[fallback].label} was written in its place: {out}")
        return exported


def _deploy(bundle: Bundle, out: Path, data: AnyData | None, cache_dir: Path | None) -> Exported:
    with scratch_folder("export") as temporary:
        deployable = [row.name for row in RUNTIMES.values() if row.deployment is not None]
        if bundle.info.runtime not in deployable:
            # without one of its own a bundle is deployed as the graph that most programs run; that graph is compared on
            # the user's images as a deployment, not twice
            bundle = load_bundle(_as_bundle(bundle, Path(temporary, "graph"), None, cache_dir, deployable[0]).path)
        parity = write_deployment(bundle, out, data, cache_dir)
    return Exported(out, DEPLOYMENT, _size(out), parity)


def _web(bundle: Bundle, out: Path, data: AnyData | None, cache_dir: Path | None, given: Path | None) -> Exported:
    # before a network is traced: they may not be there
    images = parity_images(bundle, data, cache_dir=cache_dir)
    runtime = web_runtime(given, cache_dir)
    if is_quantized(bundle.info.precision) and bundle.info.runtime != PORTABLE:
        warn(
            f"the page is of the float32 weights: browsers compute ONNX, and {bundle.info.precision} was made for "
            f"{RUNTIMES[bundle.info.runtime].label}"
        )
    with scratch_folder("export") as temporary:
        if bundle.info.runtime != PORTABLE:
            bundle = load_bundle(_as_bundle(bundle, Path(temporary, "graph"), None, cache_dir, PORTABLE).path)
        page = write_page(bundle, out, data, cache_dir, images=images, runtime=runtime)
    return Exported(out, WEB, _size(out), page.parity, page.verified.done, page.verified.missing)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _as_bundle(
    bundle: Bundle,
    out: Path,
    data: AnyData | None,
    cache_dir: Path | None,
    runtime: str,
) -> Exported:
    images, name = parity_images(bundle, data, cache_dir=cache_dir)
    derived, parity = with_graph_for(runtime, bundle, out, images, name)
    size = sum(path.stat().st_size for path in derived.folder.iterdir())
    return Exported(derived.folder, runtime, size, parity)
