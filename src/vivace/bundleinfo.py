"""What bundle.json says of a bundle beside its files: read strictly, whoever wrote it (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vivace.config import check_choice, check_range
from vivace.data.preprocess import Preprocess
from vivace.errors import ConfigError
from vivace.manifest import SCHEMA_VERSION
from vivace.models.arguments import check_arguments, check_shape
from vivace.models.own.names import check_own_arguments, check_own_name, is_own
from vivace.runtimes.table import PRECISIONS, REFERENCE

__all__ = ["Architecture", "BundleInfo", "check_info"]

# what a certificate of parity tells at least
PARITY = {"images", "num_images", "max_difference"}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What `create_model` needs to build the network, or the code of one of the user's own."""

    name: str
    num_classes: int
    in_channels: int = 3
    size: int = 32
    """Side of the square input, px."""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_own(self) -> bool:
        """Whether it is one of the user's own, whose code no bundle holds."""
        return is_own(self.name)

    def check_arguments(self) -> None:
        """Raises ModelError for arguments that a bundle may not give a constructor."""
        check = check_own_arguments if self.is_own else check_arguments
        check(self.arguments, where="architecture.arguments")


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """What bundle.json says."""

    architecture: Architecture
    classes: tuple[str, ...]
    preprocess: Preprocess
    precision: str = "fp32"
    """Precision that the metrics were measured with: fp32, bf16 or fp16."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Per split: top1, top1_low, top1_high, top5, nll, ece, num_images; of sets of labels map, f1_macro …"""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    """Name, fingerprint and number of images of the data set that it was trained on."""
    starting_weights: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights that training started from came from: kind, from, license …; empty for random ones."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Of one of the user's own: name, kind, module, SHA-256 of its source, operations for one image; without_graph says
    why it has no graph."""
    temperature: float | None = None
    """By which the logits that training ended with were divided to calibrate them: the weights hold it already."""
    task: Literal["single_label", "multi_label"] = "single_label"
    """single_label: one class an image; multi_label: a set of labels, each with a probability of its own."""
    thresholds: tuple[float, ...] = ()
    """multi_label: the probability from which on each label is predicted, in the order of the classes."""
    runtime: str = REFERENCE
    """What computes its probabilities: a row of `vivace.runtimes.table`, whose graph lies in the folder."""
    parity: Mapping[str, Any] = field(default_factory=dict)
    """How that runtime agrees with the PyTorch model: images, num_images, top1_agreement, max_difference, tolerance."""
    schema_version: int = SCHEMA_VERSION

    @property
    def multi_label(self) -> bool:
        """Whether an image has a set of labels."""
        return self.task == "multi_label"


def check_info(info: BundleInfo) -> None:
    """Raises ConfigError or ModelError unless the parts fit each other, and free mappings hold what is read of them."""
    architecture, preprocess = info.architecture, info.preprocess
    check_shape(architecture.num_classes, architecture.in_channels, architecture.size)
    if architecture.is_own:
        check_own_name(architecture.name)
    architecture.check_arguments()
    check_choice("precision", info.precision, PRECISIONS)
    check_range("temperature", info.temperature, 0.0, open_low=True)
    inside, count = [0 <= value <= 1 for value in info.thresholds], info.multi_label * architecture.num_classes
    _demand(inside == [True] * count, f"thresholds {info.thresholds}", f"{count}, from 0 to 1, of {info.task}")
    _demand(len(info.classes) == architecture.num_classes, f"{len(info.classes)} classes", "num_classes of them")
    _demand(len(set(info.classes)) == len(info.classes), "a class that comes twice", "each once")
    _demand(
        (preprocess.size, preprocess.channels) == (architecture.size, architecture.in_channels),
        f"preprocess of {preprocess.size} px and {preprocess.channels} channels",
        f"those of the architecture, {architecture.size} px and {architecture.in_channels} channels",
    )
    _demand(preprocess.decode == "fine", f"preprocess.decode {preprocess.decode!r}", "fine: coarse is for predictions")
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
    for name, value in info.network.items():
        counts = name == "operations" and type(value) is int and value > 0
        _demand(
            counts or isinstance(value, str), f"network.{name} {value!r}", "a text, or operations as a whole number"
        )
    for name, value in info.parity.items():
        is_text = name in ("runtime", "precision", "images", "reference")
        _demand(isinstance(value, str) if is_text else _is_number(value), f"parity.{name} {value!r}", "another type")
    least = PARITY | {"set_agreement" if info.multi_label else "top1_agreement"}
    _demand(not info.parity or info.parity.keys() >= least, f"parity {sorted(info.parity)}", f"{sorted(least)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _demand(holds: bool, got: str, expected: str) -> None:
    if not holds:
        raise ConfigError(f"got {got[:200]}, expected {expected}.")
