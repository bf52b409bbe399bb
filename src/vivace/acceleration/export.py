"""vivace.export: a bundle in another form, checked against PyTorch before it is left on disk.

Each target writes files into a folder; one row of TARGETS each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vivace.acceleration.deployment.folder import GRAPHS, check_place, write_deployment
from vivace.acceleration.graph import deployed_graph
from vivace.acceleration.parity import Parity, check_parity, measure_parity, parity_images
from vivace.bundle import Bundle, BundleInfo, derive_bundle, export_state_dict, load_bundle
from vivace.errors import ConfigError, MissingExtra, nearest
from vivace.files import atomic_file
from vivace.runtimes import load_runtime
from vivace.runtimes.onnx import GRAPH as ONNX_GRAPH
from vivace.runtimes.openvino import GRAPH as OPENVINO_GRAPH

__all__ = ["GRAPH_WRITERS", "TARGETS", "Exported", "export"]

# of ONNX: what runtimes of the last two years read
OPSET = 20
# of what is traced: any number of images
DYNAMIC_SHAPES = ({0: torch.export.Dim("batch", min=1)},)


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
    """Write a bundle in another form: "onnx" or "openvino" (a bundle again), "pt2" or "state-dict" (a file), or
    "deploy": a folder that classifies images without torch and without vivace.

    out: the folder of the new bundle, or the file. data: images for the certificate of parity, as for `train`; without
    them they are generated. What disagrees with PyTorch is not left on disk.
    Raises ConfigError for an unknown target, MissingExtra if its library is not installed, ParityError if the form
    does not agree, BundleError if a weight is NaN or infinite.
    """
    if target not in TARGETS:
        raise ConfigError(f"--to is unknown: got {target!r}.{nearest(target, TARGETS)} Known: {', '.join(TARGETS)}.")
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    cache_path = Path(cache_dir) if cache_dir is not None else None
    return TARGETS[target](bundle, Path(out), data, cache_path)


def _state_dict(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None) -> Exported:
    path = export_state_dict(bundle, out)
    return Exported(path, "state-dict", path.stat().st_size, None)


def _pt2(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None) -> Exported:
    images, name = parity_images(bundle, data, cache_dir=cache_dir)
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(_traced(bundle), buffer)
        buffer.seek(0)
        # read back: what is certified is what lies in the file
        loaded: Any = torch.export.load(buffer).module()

    @torch.inference_mode()
    def classify(images_NHWC: Any) -> Any:
        return loaded(torch.from_numpy(images_NHWC.copy())).numpy()

    parity = measure_parity(bundle, classify, images, runtime="pt2", precision="fp32", images=name)
    check_parity(parity)
    with atomic_file(out) as file:
        file.write(buffer.getvalue())
    return Exported(out, "pt2", out.stat().st_size, parity)


def _onnx(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None) -> Exported:
    return _as_bundle(bundle, out, data, cache_dir, "onnx")


def _openvino(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None) -> Exported:
    return _as_bundle(bundle, out, data, cache_dir, "openvino")


def _deploy(bundle: Bundle, out: Path, data: str | Path | None, cache_dir: Path | None) -> Exported:
    check_place(out)
    with tempfile.TemporaryDirectory() as temporary:
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


def _traced(bundle: Bundle) -> Any:
    graph, example = deployed_graph(bundle)
    return torch.export.export(graph, (example,), dynamic_shapes=DYNAMIC_SHAPES)


def _write_onnx(bundle: Bundle, folder: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtra("onnxscript", "accelerate", "an export to ONNX") from None
    graph, example = deployed_graph(bundle)
    with _quiet():
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
    try:
        import openvino
    except ImportError:
        raise MissingExtra("openvino", "accelerate", "an export to OpenVINO") from None
    with _quiet():
        model = openvino.convert_model(_traced(bundle))
        # float32 as the weights are: a smaller file is a step of its own, with its own check
        openvino.save_model(model, folder / OPENVINO_GRAPH, compress_to_fp16=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that exporters raise for their own developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# runtime → writes its graph, float32, into a folder
GRAPH_WRITERS: dict[str, Callable[[Bundle, Path], None]] = {"onnx": _write_onnx, "openvino": _write_openvino}
TARGETS: dict[str, Callable[[Bundle, Path, str | Path | None, Path | None], Exported]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "pt2": _pt2,
    "state-dict": _state_dict,
    "deploy": _deploy,
}
