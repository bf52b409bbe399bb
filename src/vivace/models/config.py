"""Which network: the fields of a recipe that the zoo reads (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vivace.config import check_range
from vivace.errors import ConfigError, ModelError
from vivace.models.arguments import check_arguments
from vivace.models.own.names import check_own_arguments, check_own_name, is_own

__all__ = ["NETWORKS", "ModelConfig"]

# our own, in the order of the zoo
NETWORKS = ("simple_cnn", "fast_cnn", "fast_photo", "scatter_linear")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network by name and how it starts."""

    name: str = "auto"
    """A name of the zoo, `timm/NAME` for any network of timm, `own/FILE.py:NAME` for one of your own, which is then
    passed with the call, or "auto": the recipe's network for this image size."""
    pretrained: bool = False
    """Start from published weights: of an installed package, timm's or torchvision's cache, or the hub."""
    weights: str | None = None
    """Start from a local safetensors or `.pth` state dict, or a bundle's or run's folder; a head of another size is
    left out."""
    start_from: str | None = None
    """Start from this run or bundle, whose network and preprocessing the recipe then has; the rows of the head are
    matched by the names of the classes."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the network's constructor, such as {"drop_path_rate": 0.1}."""
    size: int | None = None
    """Side of what the network sees, px, where it is less than data.size: training views are made at data.size, at
    which a teacher answers best, and shrunk. The bundle takes images of this side. None: data.size."""

    @property
    def has_learnt(self) -> bool:
        """Whether it starts from trained weights."""
        return bool(self.pretrained or self.weights or self.start_from)

    def __post_init__(self) -> None:
        check_range("model.size", self.size, 1, 4096)
        if self.start_from and (self.pretrained or self.weights):
            raise ConfigError(
                f"two kinds of weights to start from: got model.start_from {self.start_from!r} and "
                f"{'model.pretrained' if self.pretrained else 'model.weights'}. Give one of them."
            )
        if is_own(self.name):
            self._check_own()
            return
        for key in ("num_classes", "in_channels", "size", "pretrained", "name"):
            if key in self.arguments:
                fix = {"size": "Set data.size.", "pretrained": "Set model.pretrained.", "name": "Set model.name."}
                raise ConfigError(
                    f"model.arguments.{key} is not the network's own: got {self.arguments[key]!r}. "
                    f"{fix.get(key, 'Leave it out: the images decide.')}"
                )
        try:
            check_arguments(self.arguments)
        except ModelError as error:
            raise ConfigError(str(error)) from None

    def _check_own(self) -> None:
        if self.pretrained:
            raise ConfigError(
                f"model.pretrained can't go with a network of your own: got {self.name}. Give `weights`, a local file, "
                "or an instance that has weights."
            )
        try:
            check_own_name(self.name)
            check_own_arguments(self.arguments)
        except ModelError as error:
            raise ConfigError(str(error)) from None
