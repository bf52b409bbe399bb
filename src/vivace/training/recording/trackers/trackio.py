"""Trackio: a database in TRACKIO_DIR, by default in Hugging Face's cache, or a Space (TRACKIO_SPACE_ID)."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from vivace.training.recording.trackers.backend import PROJECT, Status, Tracked, TrackedRun

__all__ = ["TrackioBackend"]

# which of its modules print to stdout, where a result may be waited for
PRINTING = ("trackio", "trackio.run", "trackio.utils", "trackio.sqlite_storage")


class TrackioBackend:
    """A run of the project "vivace", or of TRACKIO_PROJECT."""

    def start(self, run: TrackedRun) -> Tracked:
        import trackio

        for name in PRINTING:
            # redirecting stdout would redirect it for the thread that trains too
            vars(sys.modules[name])["print"] = _ignored
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        # it finds runs by name: two folders may have the same one
        run_id = run.known_as or f"{run.name}-{uuid.uuid4().hex[:6]}"
        self._run = trackio.init(
            project=project,
            name=run_id,
            config=dict(run.params),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        place = f"run {run_id!r} of project {project!r}; see it with: trackio show --project {project}"
        return Tracked(run_id=run_id, place=place, is_continued=run.known_as is not None)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, figures: Mapping[str, float], step: int, status: Status) -> None:
        if figures:
            self.log(figures, step)
        self._run.finish()


def _ignored(*_: Any, **__: Any) -> None:
    """In place of print."""
