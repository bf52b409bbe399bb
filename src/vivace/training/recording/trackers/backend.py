"""What a tracker's library must do for us: the three calls that differ between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

__all__ = ["PROJECT", "Backend", "Status", "Tracked", "TrackedRun"]

# the experiment or project, unless the library's environment variable names another one
PROJECT = "vivace"
Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as a tracker is told of it."""

    name: str
    folder: Path
    """Of the run, absolute."""
    params: Mapping[str, Any]
    """The resolved recipe by dotted names, the data's name, fingerprint and sizes, and the path of the bundle."""
    known_as: str | None
    """The tracker's id of this run, which is resumed; None: it is new."""


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """How a tracker calls a run."""

    run_id: str
    place: str
    """Where it can be seen, for people."""
    is_continued: bool
    """Whether it is the run that `known_as` names."""


class Backend(Protocol):
    """A tracker's library. Each method may raise anything: the tracker stops then, the training goes on."""

    def start(self, run: TrackedRun) -> Tracked:
        """Begin a run, or continue the one that is known."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record figures of a step; steps rise from call to call."""

    def finish(self, figures: Mapping[str, float], step: int, status: Status) -> None:
        """Record the final figures and end the run. figures: empty if it did not come to its end."""
