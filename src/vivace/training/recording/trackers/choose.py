"""Which experiment trackers a run reports to, by name (their libraries are imported when the run starts)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vivace.errors import ConfigError, MissingExtra, nearest, shown
from vivace.training.recording.trackers.backend import Backend
from vivace.training.recording.trackers.tracker import Tracker

__all__ = ["TRACKERS", "make_trackers", "parse_trackers"]


@dataclass(frozen=True)
class TrackerRow:
    """A tracker that `track` may name."""

    make: Callable[[], Backend] | None
    """None: what it needs is written for every run."""
    library: str | None = None
    """Its module, and the extra of vivace that installs it."""


def _mlflow() -> Backend:
    from vivace.training.recording.trackers.mlflow import MlflowBackend

    return MlflowBackend()


def _wandb() -> Backend:
    from vivace.training.recording.trackers.wandb import WandbBackend

    return WandbBackend()


def _trackio() -> Backend:
    from vivace.training.recording.trackers.trackio import TrackioBackend

    return TrackioBackend()


TRACKERS = {
    "tensorboard": TrackerRow(make=None),
    "mlflow": TrackerRow(make=_mlflow, library="mlflow"),
    "wandb": TrackerRow(make=_wandb, library="wandb"),
    "trackio": TrackerRow(make=_trackio, library="trackio"),
}


def parse_trackers(track: str | Sequence[str]) -> tuple[str, ...]:
    """The trackers that `track` names, each once: "mlflow,wandb" or ["mlflow", "wandb"].

    Raises ConfigError for an unknown name, MissingExtra if a tracker's library is not installed.
    """
    given = [track] if isinstance(track, str) else track
    if not isinstance(given, Sequence) or not all(isinstance(item, str) for item in given):
        raise ConfigError(f"`track` is no list of names: got {shown(track)}. Give names such as 'mlflow'.")
    names = [name.strip() for item in given for name in item.split(",")]
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(
                f"`track` is unknown: got {name!r}.{nearest(name, TRACKERS)} Known: {', '.join(TRACKERS)}."
            )
        library = TRACKERS[name].library
        if library is not None and not _is_installed(library):
            raise MissingExtra(library, library, f"`track={name!r}`")
    return tuple(dict.fromkeys(names))


def make_trackers(names: Sequence[str], *, on_message: Callable[[str], None]) -> tuple[Tracker, ...]:
    """A callback for each of these trackers. on_message: gets a line that says where the run is tracked."""
    makers = [(name, TRACKERS[name].make) for name in names]
    return tuple(Tracker(name, make, on_message=on_message) for name, make in makers if make is not None)


def _is_installed(library: str) -> bool:
    spec = importlib.util.find_spec(library)
    # a folder of that name, as wandb makes one, is found as a package without a file
    return spec is not None and spec.origin is not None
