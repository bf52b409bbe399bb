"""The options of a search for a faster module."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from vivace.acceleration.modules.metrics import Metric
from vivace.acceleration.options import SearchOptions
from vivace.config import parse_duration
from vivace.errors import ConfigError, nearest, shown

__all__ = ["ModuleKeywords", "ModuleOptions"]


# what a search for a faster bundle takes beside its options
FOR_BUNDLES = ("out", "options", "started", "draw", *(field.name for field in dataclasses.fields(SearchOptions)))


class ModuleKeywords(TypedDict, total=False):
    """The fields of ModuleOptions as keywords, for type checkers."""

    metric: str | Metric | None
    example: Any
    calibration: Iterable[Any] | None
    train: Iterable[Any] | None
    max_drop: float
    thorough: bool
    within: float | str | None


@dataclass(frozen=True, kw_only=True)
class ModuleOptions:
    """Raises ConfigError for values that make no sense."""

    metric: str | Metric | None = None
    """ "top1", "agreement", or a function of (outputs, targets) that returns a score in [0, 1] for each sample. None:
    top1 where there are targets, else agreement with the original."""
    example: Any = None
    """The inputs of a call as it will be made, which is timed, in the form of the data's. None: the first batch."""
    calibration: Iterable[Any] | None = None
    """Batches that ranges for int8 are measured on. None: those to choose on."""
    train: Iterable[Any] | None = None
    """Batches like the data, and none of their samples: of a module that classifies images smaller networks are
    trained on them, to answer like it. None: none are."""
    max_drop: float = 0.5
    """Budget: the largest drop of the mean score, in percentage points, proven with 95 % confidence."""
    thorough: bool = False
    """Whether to try what can hardly be faster too, and to time the module compiled as a baseline for sure."""
    within: float | str | None = "10m"
    """Time budget. Work that would not fit is not begun; what has begun is not ended."""

    def __post_init__(self) -> None:
        # one check for both kinds of search
        SearchOptions(max_drop=self.max_drop, within=self.within)
        if not isinstance(self.thorough, bool):
            raise ConfigError(f"`thorough` is True or False: got {shown(self.thorough)}.")
        for name in ("calibration", "train"):
            given = getattr(self, name)
            if given is not None and (isinstance(given, str) or not isinstance(given, Iterable)):
                raise ConfigError(f"`{name}` is no iterable of batches: got {shown(given)}. Give a DataLoader.")

    @property
    def within_seconds(self) -> float | None:
        """`within` in seconds; None: no limit."""
        return None if self.within is None else parse_duration(self.within)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModuleOptions:
        """From keywords. Raises ConfigError for unknown ones."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name in FOR_BUNDLES and name not in known:
                raise ConfigError(f"`{name}` is for bundles: a module takes {', '.join(known)}. Leave it out.")
            if name not in known:
                raise ConfigError(f"unknown option {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
        return cls(**values)
