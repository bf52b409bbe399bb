"""The options of a search: one object for the command line, Python, the search and its report (no torch here)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from vivace.config import check_choice, check_count, check_path, parse_duration, shown_value
from vivace.errors import ConfigError, nearest

__all__ = ["SearchKeywords", "SearchOptions"]

Objective = Literal["latency", "throughput", "size"]
Training = Literal["auto", "on", "off"]
OnBadImage = Literal["auto", "refuse", "skip"]
# batch size by objective, if none is given
DEFAULT_BATCH = {"latency": 1, "throughput": 32, "size": 1}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The options of a search for a faster variant. Raises ConfigError for values that make no sense."""

    max_drop: float = 0.5
    """Accuracy budget: the largest accuracy drop, in percentage points, proven with 95 % confidence."""
    objective: Objective = "latency"
    """What to optimise: time of a call, images per second, or bytes."""
    batch_size: int | None = None
    """Images per call. Default: 1; for throughput 32."""
    threads: int | None = None
    """Processors to use. Default: all."""
    within: float | str | None = None
    """Time budget for the search, such as 20m, from the start of the process. What does not fit is reported."""
    target_speedup: float | None = None
    """Report whether this speed-up is reached; if not, smaller networks are trained."""
    train: Training = "auto"
    """Train smaller networks (pruned, pretrained, or of the zoo) by distillation. auto: only for a target speed-up."""
    cache_dir: str | Path | None = None
    """Where decoded images are kept. Default: $VIVACE_CACHE or ~/.cache/vivace."""
    on_bad_image: OnBadImage = "auto"
    """What to do with images that are corrupt or contradict each other. auto: leave them out, up to 5 %."""

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, get_args(Objective))
        check_choice("train", self.train, get_args(Training))
        check_choice("on_bad_image", self.on_bad_image, get_args(OnBadImage))
        for name in ("batch_size", "threads"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        _check_number("target_speedup", self.target_speedup)
        if self.target_speedup is not None and not 0 < self.target_speedup <= sys.float_info.max:
            got = _short(self.target_speedup)
            raise ConfigError(f"target_speedup is out of range: got {got}. Give a number above 0.")
        _check_number("max_drop", self.max_drop)
        if not 0 < self.max_drop < 100:
            got = _short(self.max_drop)
            raise ConfigError(f"max_drop is out of range: got {got} points. Give more than 0, under 100.")
        if self.within is not None:
            parse_duration(self.within)
        check_path("cache_dir", self.cache_dir)

    @property
    def within_seconds(self) -> float | None:
        """`within` in seconds; None: no limit."""
        return None if self.within is None else parse_duration(self.within)

    @property
    def images_per_call(self) -> int:
        """The batch size that is timed: `batch_size`, or the default of the objective."""
        return self.batch_size or DEFAULT_BATCH[self.objective]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report, with the resolved batch size and the time budget in seconds.

        Without `cache_dir`, which changes no result and names a folder of this machine.
        """
        values = dataclasses.asdict(self)
        del values["cache_dir"], values["within"]
        return {**values, "batch_size": self.images_per_call, "within_seconds": self.within_seconds}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchOptions:
        """From keywords or from `to_dict`. Raises ConfigError for an unknown name."""
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, Mapping):
            raise ConfigError(f"the options are no mapping: got {shown_value(values)}. Give names and values.")
        keywords = dict(values)
        if "within_seconds" in keywords:
            seconds = keywords.pop("within_seconds")
            if seconds is not None and keywords.get("within") is not None:
                raise ConfigError(
                    f"within and within_seconds are the same: got {shown_value(keywords['within'])} and "
                    f"{shown_value(seconds)}. "
                    "Leave within_seconds out."
                )
            keywords.setdefault("within", seconds)
        for name in keywords:
            if name not in known:
                raise ConfigError(f"unknown option {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
        return cls(**keywords)


class SearchKeywords(TypedDict, total=False):
    """The fields of SearchOptions as keywords, for type checkers."""

    max_drop: float
    objective: Objective
    batch_size: int | None
    threads: int | None
    within: float | str | None
    within_seconds: float | None
    target_speedup: float | None
    train: Training
    cache_dir: str | Path | None
    on_bad_image: OnBadImage


def _short(value: float) -> str:
    # integers may be too large for a float
    return f"{value:g}" if isinstance(value, float) else shown_value(value)


def _check_number(name: str, value: Any) -> None:
    if (value is None and name == "max_drop") or isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ConfigError(f"{name} has the wrong type: got {shown_value(value)}. Give a number.")
