"""The bundle: a folder that carries a trained classifier, and nothing that could run code.

    model.safetensors    the weights, contiguous, as the plain network's state dict names them
    model.onnx, …        the graph for another runtime, where one was exported
    bundle.json          everything else, with the SHA-256 and size of every file and of itself

Training writes it; acceleration, evaluation, prediction, export and serving start from it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vivace.config import from_dict, to_dict
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ConfigError, ModelError
from vivace.files import atomic_file, atomic_folder, canonical_json, sha256_of, write_json

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "SCHEMA_VERSION",
    "Architecture",
    "Bundle",
    "BundleInfo",
    "check_finite",
    "derive_bundle",
    "export_state_dict",
    "load_bundle",
    "save_bundle",
]

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"
MANIFEST = "bundle.json"
# a manifest is a few hundred kB with 10,000 classes: anything larger is no manifest
MAX_MANIFEST_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What `create_model` needs to build the network."""

    name: str
    num_classes: int
    in_channels: int = 3
    size: int = 32
    """Side of the square input, px."""
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """What bundle.json says."""

    architecture: Architecture
    classes: tuple[str, ...]
    preprocess: Preprocess
    precision: str = "fp32"
    """Arithmetic that the metrics were measured with: fp32, bf16 or fp16."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Per split: top1, top1_low, top1_high, top5, nll, ece, num_images."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    """Name, fingerprint and number of images of the data set that it was trained on."""
    temperature: float | None = None
    """By which the logits that training ended with were divided to calibrate them: the weights hold it already."""
    runtime: str = "eager"
    """What computes its probabilities: a row of vivace.runtimes.RUNTIMES, whose graph lies in the folder."""
    parity: Mapping[str, Any] = field(default_factory=dict)
    """How that runtime agrees with the PyTorch model: images, num_images, top1_agreement, max_difference, tolerance."""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose hashes were found right."""

    folder: Path
    info: BundleInfo
    files: tuple[str, ...] = (WEIGHTS,)
    """Names of the files whose hashes the manifest holds; no other file in the folder is to be believed."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    @property
    def preprocess(self) -> Preprocess:
        return self.info.preprocess

    def build_model(self) -> nn.Module:
        """The plain network with its weights, in eval mode on the CPU: normalised images_BCHW float → logits_BK.

        Raises BundleError if the weights do not fit the network that the bundle names.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from vivace.models.zoo import create_model

        architecture = self.info.architecture
        try:
            model = create_model(
                architecture.name,
                architecture.num_classes,
                in_channels=architecture.in_channels,
                size=architecture.size,
                **architecture.arguments,
            )
            weights = load_file(self.folder / WEIGHTS)
        except (ModelError, SafetensorError, OSError, TypeError) as error:
            raise BundleError(f"the bundle can't be built: {self.folder} ({error}). Make it again.") from None
        expected = model.state_dict()
        for name, tensor in expected.items():
            found = weights.get(name)
            if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
                got = "nothing" if found is None else f"{found.dtype} {tuple(found.shape)}"
                raise BundleError(
                    f"the weights do not fit {architecture.name}: {name} is {got}, expected {tensor.dtype} "
                    f"{tuple(tensor.shape)}. Make the bundle again: {self.folder}."
                )
        foreign = sorted(set(weights) - set(expected))
        if foreign:
            raise BundleError(
                f"the weights do not fit {architecture.name}: {foreign[0]} is not part of it. "
                f"Make the bundle again: {self.folder}."
            )
        model.load_state_dict(weights)
        return model.eval()


def save_bundle(folder: Path, model: nn.Module, info: BundleInfo) -> Bundle:
    """Write the bundle atomically and return it; an older bundle in `folder` is replaced.

    Raises BundleError if a weight is NaN or infinite: such a model must not be deployed.
    """
    from safetensors.torch import save_file

    weights = _finite_weights(model)
    folder = Path(folder)
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / WEIGHTS)
        _write_manifest(temporary, info)
    return Bundle(folder, info)


def derive_bundle(bundle: Bundle, folder: Path, add: Callable[[Path], BundleInfo]) -> Bundle:
    """Write another bundle with the weights of `bundle`, and return it; one in `folder` is replaced.

    add(folder) adds files beside the weights and gives what the manifest is to say; nothing is left if it raises.
    Raises BundleError if a weight is NaN or infinite.
    """
    _finite_weights(bundle.build_model())
    folder = Path(folder)
    with atomic_folder(folder) as temporary:
        shutil.copyfile(bundle.folder / WEIGHTS, temporary / WEIGHTS)
        info = add(temporary)
        names = tuple(sorted(path.name for path in temporary.iterdir()))
        _write_manifest(temporary, info)
    return Bundle(folder, info, names)


def _write_manifest(folder: Path, info: BundleInfo) -> None:
    """bundle.json for all that lies in the folder."""
    files = {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
    manifest = {"format": "vivace-bundle", **to_dict(info), "files": files}
    manifest["sha256"] = _manifest_hash(manifest)
    write_json(folder / MANIFEST, manifest)


def load_bundle(folder: str | Path) -> Bundle:
    """The bundle in `folder`, after every file's hash was checked. Needs no network and no training code.

    Raises BundleError if it is no bundle, damaged, newer than this version, or names a file outside its folder.
    """
    folder = Path(folder)
    if folder.is_file():
        raise BundleError(
            f"not a bundle: {folder} is a file, and a bundle is a folder with {MANIFEST}. "
            "Pickled checkpoints are never loaded; give the folder that 'vivace train' wrote."
        )
    # a run folder is what people have at hand
    if not (folder / MANIFEST).is_file() and (folder / "bundle" / MANIFEST).is_file():
        folder = folder / "bundle"
    manifest = _read_manifest(folder)
    files = manifest.pop("files")
    _check_files(folder, files)
    try:
        info = from_dict(BundleInfo, manifest)
    except ConfigError as error:
        raise BundleError(f"{MANIFEST} is wrong: {error} Make the bundle again: {folder}.") from None
    if len(info.classes) != info.architecture.num_classes:
        raise BundleError(
            f"{MANIFEST} is wrong: {len(info.classes)} classes for a network of {info.architecture.num_classes}. "
            f"Make the bundle again: {folder}."
        )
    return Bundle(folder, info, tuple(files))


def export_state_dict(bundle: Bundle, path: Path) -> Path:
    """Write the weights as a plain `.pth` that torch.load(weights_only=True) and load_state_dict accept.

    Raises BundleError if a weight is NaN or infinite.
    """
    import torch

    weights = _finite_weights(bundle.build_model())
    with atomic_file(Path(path)) as file:
        torch.save(weights, file)
    return Path(path)


def check_finite(model: nn.Module) -> None:
    """Raises BundleError if a weight is NaN or infinite: such a model must not be deployed."""
    _finite_weights(model)


def _finite_weights(model: nn.Module) -> dict[str, Any]:
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BundleError(f"the weights hold NaN or Inf: {name}. Train again with a lower learning rate.")
    return weights


def _manifest_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json({k: v for k, v in manifest.items() if k != "sha256"})).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(
                f"{path} is {path.stat().st_size:,} bytes, over {MAX_MANIFEST_BYTES:,}: no manifest is that large."
            )
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(
            f"not a bundle: {folder} has no {MANIFEST}. Give the folder that 'vivace train' wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path} can't be read ({error}). Make the bundle again, or restore it from a copy."
        ) from None
    if not isinstance(manifest, dict) or manifest.pop("format", None) != "vivace-bundle":
        raise BundleError(f"not a bundle: {path} does not say so. Give the folder that 'vivace train' wrote.")
    version = manifest.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"the bundle is newer: schema {version}, this vivace reads up to {SCHEMA_VERSION}. "
            "Upgrade: pip install -U vivace."
        )
    expected = manifest.pop("sha256", None)
    if expected != _manifest_hash({"format": "vivace-bundle", **manifest}):
        raise BundleError(f"{path} was changed after it was written: its SHA-256 is wrong. Restore it from a copy.")
    if not isinstance(manifest.get("files"), dict) or WEIGHTS not in manifest["files"]:
        raise BundleError(f"{path} names no {WEIGHTS}. Make the bundle again.")
    return manifest


def _check_files(folder: Path, files: Mapping[str, Any]) -> None:
    root = folder.resolve()
    for name, facts in files.items():
        relative = PurePosixPath(name)
        path = folder / relative
        if relative.is_absolute() or ".." in relative.parts or not path.resolve().is_relative_to(root):
            raise BundleError(f"the bundle names a file outside its folder: {name!r}. Do not use it: {folder}.")
        if not path.is_file():
            raise BundleError(f"the bundle lacks a file: {path}. Restore it from a copy.")
        size = path.stat().st_size
        if size != facts.get("bytes"):
            raise BundleError(
                f"{path} is damaged: {size:,} bytes, expected {facts.get('bytes'):,}. Restore it from a copy."
            )
        if sha256_of(path) != facts.get("sha256"):
            raise BundleError(f"{path} is damaged: its SHA-256 is not the recorded one. Restore it from a copy.")
