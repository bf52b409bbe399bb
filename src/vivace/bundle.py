"""The bundle: a folder that carries a trained classifier, and nothing that could run code.

    model.safetensors    the weights, contiguous, as the plain network's state dict names them
    model.onnx, …        the graph for another runtime, where one was exported
    trained_on.digests   the first bytes of the digests of the images that it was trained on, where they are known
    bundle.json          everything else, with the SHA-256 and size of every file and of itself

Training writes it; acceleration, evaluation, prediction, export and serving start from it.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.config import check_choice, check_range, from_dict, to_dict
from vivace.cpus import forked_with, limit_threads
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ConfigError, ModelError
from vivace.files import atomic_folder, sha256_of, write_json
from vivace.manifest import MANIFEST, SCHEMA_VERSION, WEIGHTS, bundle_folder, check_file, check_files, read_manifest
from vivace.models.arguments import check_arguments, check_shape
from vivace.outputs import check_folder, own_folder, seal
from vivace.runtimes.table import PRECISIONS, REFERENCE
from vivace.trained_on import TRAINED_ON, TrainedOn, write_trained_on

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

__all__ = [
    "SCHEMA_VERSION",
    "Architecture",
    "Bundle",
    "BundleInfo",
    "check_finite",
    "derive_bundle",
    "finite_weights",
    "load_bundle",
    "save_bundle",
]

# what a certificate of parity tells at least
PARITY = {"images", "num_images", "top1_agreement", "max_difference"}


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
    """Precision that the metrics were measured with: fp32, bf16 or fp16."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Per split: top1, top1_low, top1_high, top5, nll, ece, num_images."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    """Name, fingerprint and number of images of the data set that it was trained on."""
    starting_weights: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights that training started from came from: kind, from, license …; empty for random ones."""
    temperature: float | None = None
    """By which the logits that training ended with were divided to calibrate them: the weights hold it already."""
    runtime: str = REFERENCE
    """What computes its probabilities: a row of `vivace.runtimes.table`, whose graph lies in the folder."""
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
    recorded: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Size and SHA-256 of each file when the bundle was opened; empty for one that was just written."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    @property
    def preprocess(self) -> Preprocess:
        return self.info.preprocess

    def checked(self, name: str) -> Path:
        """The path of a file, to open now. Raises BundleError if it is not what it was when the bundle was opened."""
        path = self.folder / name
        if name in self.recorded:
            check_file(path, self.recorded[name])
        return path

    def trained_on(self) -> TrainedOn | None:
        """The images that it was trained on; None if it does not tell. Raises BundleError if that is damaged."""
        return TrainedOn.read(self.checked(TRAINED_ON)) if TRAINED_ON in self.files else None

    def build_model(self) -> nn.Module:
        """The plain network with its weights, in eval mode on the CPU: normalised images_BCHW float → logits_BK.

        Raises BundleError if the weights do not fit the network that the bundle names.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from vivace.models.zoo import create_model

        # before the first parallel loop: in a forked process it would wait for threads that are not there
        if forked_with("torch"):
            limit_threads()
        architecture = self.info.architecture
        try:
            # again, for an info that was made in Python: an argument "pretrained" would be taken for create_model's own
            check_arguments(architecture.arguments, where="architecture.arguments")
            weights = load_file(self.checked(WEIGHTS))
            model = create_model(
                architecture.name,
                architecture.num_classes,
                in_channels=architecture.in_channels,
                size=architecture.size,
                # a network that the weights do not fill is not built: it has no more values than the file holds
                inspect_blank=lambda blank: self._check_fit(blank.state_dict(), weights),
                **architecture.arguments,
            )
        except BundleError:
            raise
        except (ModelError, SafetensorError, OSError, TypeError, ValueError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            raise BundleError(f"the bundle can't be built: {self.folder} ({reason}). Make it again.") from None
        model.load_state_dict(weights)
        return model.eval()

    def _check_fit(self, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Raises BundleError unless the two have the same names, shapes and dtypes."""
        name_of_network = self.info.architecture.name
        for name, tensor in expected.items():
            found = weights.get(name)
            if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
                got = "nothing" if found is None else f"{found.dtype} {tuple(found.shape)}"
                raise BundleError(
                    f"the weights do not fit {name_of_network}: {name} is {got}, expected {tensor.dtype} "
                    f"{tuple(tensor.shape)}. Make the bundle again: {self.folder}."
                )
        foreign = sorted(set(weights) - set(expected))
        if foreign:
            raise BundleError(
                f"the weights do not fit {name_of_network}: {foreign[0]} is not part of it. "
                f"Make the bundle again: {self.folder}."
            )


def save_bundle(folder: Path, model: nn.Module, info: BundleInfo, *, trained_on: np.ndarray | None = None) -> Bundle:
    """Write the bundle atomically, read it back and return it; an older bundle in `folder` is replaced.

    trained_on: digests of the images that it was trained on, as the cache has them. Raises BundleError if a weight is
    NaN or infinite: such a model must not be deployed; or if the bundle can't be read back. Raises OutputPathError if
    `folder` holds anything but a bundle that vivace wrote.
    """
    from safetensors.torch import save_file

    weights = finite_weights(model)
    folder = Path(folder)
    with _replacing(folder) as temporary:
        save_file(weights, temporary / WEIGHTS)
        if trained_on is not None:
            write_trained_on(temporary / TRAINED_ON, trained_on)
        names = tuple(sorted(path.name for path in temporary.iterdir()))
        _write_manifest(temporary, info)
        _read_back(temporary, info).build_model()
    return Bundle(folder, info, names)


def derive_bundle(bundle: Bundle, folder: Path, add: Callable[[Path], BundleInfo]) -> Bundle:
    """Write another bundle with the weights of `bundle`, and return it; one in `folder` is replaced.

    add(folder) adds files beside the weights and gives what the manifest is to say; nothing is left if it raises.
    Raises BundleError if a weight is NaN or infinite or the bundle can't be read back, OutputPathError if `folder`
    holds anything but a bundle or a deployment that vivace wrote.
    """
    finite_weights(bundle.build_model())
    folder = Path(folder)
    with _replacing(folder) as temporary:
        for name in {WEIGHTS, TRAINED_ON} & set(bundle.files):
            shutil.copyfile(bundle.checked(name), temporary / name)
        info = add(temporary)
        names = tuple(sorted(path.name for path in temporary.iterdir()))
        _write_manifest(temporary, info)
        _read_back(temporary, info)
    return Bundle(folder, info, names)


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of `folder` after the block, if that may be replaced, before and after it."""
    check_folder(folder, option="the folder")
    own = functools.partial(own_folder, shown=folder, option="the folder")
    with atomic_folder(folder, check=own) as temporary:
        yield temporary


def _read_back(folder: Path, info: BundleInfo) -> Bundle:
    """The bundle as whoever opens it will find it. Raises BundleError if that is not what was written."""
    try:
        found = load_bundle(folder)
    except BundleError as error:
        raise BundleError(f"the bundle was written and can't be read back, so it was not kept: {error}") from error
    for name in ("architecture", "classes", "preprocess"):
        if to_dict(found.info)[name] != to_dict(info)[name]:
            raise BundleError(f"the bundle was written and is read back with another {name}, so it was not kept.")
    return found


def _write_manifest(folder: Path, info: BundleInfo) -> None:
    """bundle.json for all that lies in the folder."""
    files = {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, seal({"format": "vivace-bundle", **to_dict(info), "files": files}))


def load_bundle(folder: str | Path) -> Bundle:
    """The bundle in `folder`, after every file's hash was checked. Needs no network and no training code.

    Raises BundleError if it is no bundle, damaged, newer than this version, or names a file outside its folder.
    """
    folder = bundle_folder(folder)
    try:
        manifest, files = read_manifest(folder)
        check_files(folder, files)
    except OSError as error:
        raise BundleError(f"the bundle can't be read: {folder} ({error.strerror}). Check its rights.") from None
    try:
        info = from_dict(BundleInfo, manifest)
        _check_info(info)
    except (ConfigError, ModelError) as error:
        raise BundleError(f"{MANIFEST} is wrong: {error} Make the bundle again: {folder}.") from None
    return Bundle(folder, info, tuple(files), files)


def _check_info(info: BundleInfo) -> None:
    """Raises ConfigError or ModelError unless the parts fit each other, and free mappings hold what is read of them."""
    architecture, preprocess = info.architecture, info.preprocess
    check_shape(architecture.num_classes, architecture.in_channels, architecture.size)
    check_arguments(architecture.arguments, where="architecture.arguments")
    check_choice("precision", info.precision, PRECISIONS)
    check_range("temperature", info.temperature, 0.0, open_low=True)
    _demand(len(info.classes) == architecture.num_classes, f"{len(info.classes)} classes", "num_classes of them")
    _demand(len(set(info.classes)) == len(info.classes), "a class that comes twice", "each once")
    _demand(
        (preprocess.size, preprocess.channels) == (architecture.size, architecture.in_channels),
        f"preprocess of {preprocess.size} px and {preprocess.channels} channels",
        f"those of the architecture, {architecture.size} px and {architecture.in_channels} channels",
    )
    _check_free(info)


def _check_free(info: BundleInfo) -> None:
    """Raises ConfigError unless what is read of the free mappings has its type."""
    for split, metrics in info.metrics.items():
        numbers = isinstance(metrics, Mapping) and all(_is_number(value) for value in metrics.values())
        _demand(numbers, f"metrics.{split} {metrics!r}", "a mapping of numbers")
    data, seed = info.recipe.get("data", {}), info.recipe.get("seed", 0)
    _demand(isinstance(data, Mapping), f"recipe.data {data!r}", "a mapping")
    fraction, leaks = data.get("val_fraction", 0.1), data.get("allow_leaks", False)
    _demand(
        _is_number(fraction) and 0 < fraction <= 0.5, f"recipe.data.val_fraction {fraction!r}", "a number, 0 to 0.5"
    )
    _demand(isinstance(leaks, bool), f"recipe.data.allow_leaks {leaks!r}", "true or false")
    _demand(type(seed) is int and 0 <= seed < 2**32, f"recipe.seed {seed!r}", "a whole number, 0 to 2^32")
    for name, value in info.starting_weights.items():
        _demand(isinstance(value, str), f"starting_weights.{name} {value!r}", "a text")
    for name, value in info.parity.items():
        is_text = name in ("runtime", "precision", "images")
        _demand(isinstance(value, str) if is_text else _is_number(value), f"parity.{name} {value!r}", "another type")
    _demand(not info.parity or info.parity.keys() >= PARITY, f"parity {sorted(info.parity)}", f"{sorted(PARITY)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _demand(holds: bool, got: str, expected: str) -> None:
    if not holds:
        raise ConfigError(f"got {got[:200]}, expected {expected}.")


def check_finite(model: nn.Module) -> None:
    """Raises BundleError if a weight is NaN or infinite: such a model must not be deployed."""
    finite_weights(model)


def finite_weights(model: nn.Module) -> dict[str, Any]:
    """The state dict, on the CPU and contiguous. Raises BundleError if a weight is NaN or infinite."""
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BundleError(f"the weights hold NaN or Inf: {name}. Train again with a lower learning rate.")
    return weights
