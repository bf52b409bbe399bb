"""The bundle: a folder that carries a trained classifier, and nothing that could run code.

    model.safetensors    the weights, contiguous, as the plain network's state dict names them
    model.onnx, …        the graph for another runtime, where one was exported
    reference.onnx       of a network of the user's own, what stands for it where its code is not at hand
    trained_on.digests   the first bytes of the digests of the images that it was trained on, where they are known
    sbom.cdx.json        the software bill of materials
    uncertainty.json     thresholds of prediction sets, abstaining and unlike images, with known_features.npy
    validation.json      how often each class was predicted on validation images, and with what confidence
    bundle.json          everything else, with the SHA-256 and size of every file and of itself

Training writes it; acceleration, evaluation, prediction, export and serving start from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vivace.bundleinfo import Architecture, BundleInfo, check_info
from vivace.config import from_dict, to_dict
from vivace.cpus import forked_with, limit_threads
from vivace.data.preprocess import Preprocess
from vivace.errors import BundleError, ConfigError, ModelError
from vivace.files import atomic_folder, sha256_of, write_json
from vivace.manifest import MANIFEST, SCHEMA_VERSION, WEIGHTS, bundle_folder, check_file, check_files, read_manifest
from vivace.outputs import check_folder
from vivace.owned import own_folder, seal
from vivace.runtimes.table import PORTABLE, REFERENCE_GRAPH, RUNTIMES
from vivace.sbom import write_sbom
from vivace.trained_on import TRAINED_ON, TrainedOn, write_trained_on
from vivace.uncertainty.kept import answers_kept
from vivace.uncertainty.record import FEATURES, UNCERTAINTY, Calibrated, Uncertainty, read_features, write_uncertainty
from vivace.uncertainty.validated import VALIDATED, Validated, write_validated

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from vivace.models.own.given import OwnNetwork

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


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose hashes were found right."""

    folder: Path
    info: BundleInfo
    files: tuple[str, ...] = (WEIGHTS,)
    """Names of the files whose hashes the manifest holds; no other file in the folder is to be believed."""
    recorded: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Size and SHA-256 of each file when the bundle was opened; empty for one that was just written."""
    network: OwnNetwork | None = field(default=None, repr=False, compare=False)
    """The code of a network of the user's own, where it was passed with the call."""

    @property
    def has_code(self) -> bool:
        """Whether the network can be built: it is one of ours or timm's, or its code was passed with the call."""
        return self.network is not None or not self.info.architecture.is_own

    @property
    def reference_graph(self) -> str | None:
        """Name of the float32 graph that stands for a network of the user's own; None: there is none."""
        if not self.info.architecture.is_own:
            return None
        plain = (self.info.runtime, self.info.precision) == (PORTABLE, "fp32")
        (graph,) = RUNTIMES[PORTABLE].graph_files
        name = graph if plain else REFERENCE_GRAPH
        return name if name in self.files else None

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

    def uncertainty(self) -> Uncertainty | None:
        """The thresholds of its answers; None if it has none. Raises BundleError if they are damaged or do not fit."""
        return Uncertainty.read(self.checked(UNCERTAINTY)) if UNCERTAINTY in self.files else None

    def validated(self) -> Validated | None:
        """Its answers to validation images; None: it has none. Raises BundleError if they are damaged or do not fit."""
        return Validated.read(self.checked(VALIDATED), len(self.classes)) if VALIDATED in self.files else None

    def known_features(self) -> np.ndarray | None:
        """Features of known images, float32 [M, D]; None if it has none. Raises BundleError if they are damaged."""
        return read_features(self.checked(FEATURES)) if FEATURES in self.files else None

    def build_model(self) -> nn.Module:
        """The plain network with its weights, in eval mode on the CPU: normalised images_BCHW float → logits_BK.

        Raises BundleError if the weights do not fit the network that the bundle names, and for a network of the user's
        own whose code was not passed with the call: nothing in a bundle is ever imported.
        """
        from safetensors import SafetensorError

        if not self.has_code:
            shown = self.info.architecture.name.removeprefix("own/")
            raise BundleError(
                f"the network's code is needed, and a bundle holds none: {shown} is a network of your own. Give it "
                f"(`model`; in Python `vivace.load({str(self.folder)!r}, model={shown.rpartition(':')[2]})`), or use "
                "what needs its graph alone: predict, evaluate, accelerate, export to a graph, deploy."
            )
        # before the first parallel loop: in a forked process it would wait for threads that are not there
        if forked_with("torch"):
            limit_threads()
        try:
            # again, for an info that was made in Python: an argument "pretrained" would be taken for create_model's own
            self.info.architecture.check_arguments()
            weights = self.weights()
            model = self._built(weights)
        except BundleError:
            raise
        except (ModelError, SafetensorError, OSError, TypeError, ValueError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            raise BundleError(f"the bundle can't be built: {self.folder} ({reason}). Make it again.") from None
        model.load_state_dict(weights)
        return model.eval()

    def check_finite(self) -> None:
        """Raises BundleError if a weight is NaN or infinite, or they do not fit the network, where it can be built."""
        from safetensors import SafetensorError

        if self.has_code:
            finite_weights(self.build_model())
            return
        try:
            _check_values(self.weights())
        except (SafetensorError, OSError, ValueError, MemoryError) as error:
            raise BundleError(f"the weights can't be read: {self.folder} ({error}). Make the bundle again.") from None

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict. Raises what reading safetensors raises, and BundleError if the file was changed."""
        from safetensors.torch import load_file

        return load_file(self.checked(WEIGHTS))

    def _built(self, weights: Mapping[str, Tensor]) -> nn.Module:
        architecture = self.info.architecture
        channels, size, arguments = architecture.in_channels, architecture.size, architecture.arguments
        if self.network is not None:
            model = self.network.build(architecture.num_classes, in_channels=channels, size=size, arguments=arguments)
            self._check_fit(model.state_dict(), weights)
            return model
        from vivace.models.zoo import create_model

        return create_model(
            architecture.name,
            architecture.num_classes,
            in_channels=channels,
            size=size,
            # a network that the weights do not fill is not built: it has no more values than the file holds
            inspect_blank=lambda blank: self._check_fit(blank.state_dict(), weights),
            **arguments,
        )

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


def save_bundle(
    folder: Path,
    model: nn.Module,
    info: BundleInfo,
    *,
    trained_on: np.ndarray | None = None,
    calibrated: Calibrated | None = None,
    validated: Validated | None = None,
    network: OwnNetwork | None = None,
) -> Bundle:
    """Write the bundle atomically, read it back and return it; an older bundle in `folder` is replaced.

    trained_on: digests of the images that it was trained on, as the cache has them. calibrated: the thresholds of its
    answers. validated: these to validation images. network: the code of the user's own. Raises BundleError if a weight
    is NaN or infinite: such a model must not be deployed; or if the bundle can't be read back. Raises OutputPathError
    if `folder` holds anything but a bundle that vivace wrote.
    """
    from safetensors.torch import save_file

    weights = finite_weights(model)
    folder = Path(folder)
    with _replacing(folder) as temporary:
        save_file(weights, temporary / WEIGHTS)
        if trained_on is not None:
            write_trained_on(temporary / TRAINED_ON, trained_on)
        if calibrated is not None:
            write_uncertainty(temporary, calibrated)
        if validated is not None:
            write_validated(temporary, validated)
        write_sbom(temporary, info)
        names = tuple(sorted(path.name for path in temporary.iterdir()))
        _write_manifest(temporary, info)
        dataclasses.replace(_read_back(temporary, info), network=network).build_model()
    return Bundle(folder, info, names, network=network)


def derive_bundle(bundle: Bundle, folder: Path, add: Callable[[Path], BundleInfo]) -> Bundle:
    """Write another bundle with the weights of `bundle`, and return it; one in `folder` is replaced.

    add(folder) adds files beside the weights and gives what the manifest is to say; nothing is left if it raises. Of a
    network of the user's own the graph that stands for it is kept.
    Raises BundleError if a weight is NaN or infinite or the bundle can't be read back, OutputPathError if `folder`
    holds anything but a bundle or a deployment that vivace wrote.
    """
    bundle.check_finite()
    folder = Path(folder)
    with _replacing(folder) as temporary:
        for name in {WEIGHTS, TRAINED_ON} & set(bundle.files):
            shutil.copyfile(bundle.checked(name), temporary / name)
        info = add(temporary)
        for name in answers_kept(bundle.files, bundle.info, info, temporary):
            shutil.copyfile(bundle.checked(name), temporary / name)
        if bundle.reference_graph is not None and (info.runtime, info.precision) != (PORTABLE, "fp32"):
            shutil.copyfile(bundle.checked(bundle.reference_graph), temporary / REFERENCE_GRAPH)
        write_sbom(temporary, info)
        names = tuple(sorted(path.name for path in temporary.iterdir()))
        _write_manifest(temporary, info)
        _read_back(temporary, info)
    return Bundle(folder, info, names, network=bundle.network)


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
        check_info(info)
    except (ConfigError, ModelError) as error:
        raise BundleError(f"{MANIFEST} is wrong: {error} Make the bundle again: {folder}.") from None
    return Bundle(folder, info, tuple(files), files)


def check_finite(model: nn.Module) -> None:
    """Raises BundleError if a weight is NaN or infinite: such a model must not be deployed."""
    finite_weights(model)


def finite_weights(model: nn.Module) -> dict[str, Any]:
    """The state dict, on the CPU and contiguous. Raises BundleError if a weight is NaN or infinite."""
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    _check_values(weights)
    return weights


def _check_values(weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BundleError(f"the weights hold NaN or Inf: {name}. Train again with a lower learning rate.")
