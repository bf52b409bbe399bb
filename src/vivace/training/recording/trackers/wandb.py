"""Weights & Biases: online for who is logged in, else a folder in the run's, which `wandb sync` uploads."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivace.training.recording.trackers.backend import PROJECT, Status, Tracked, TrackedRun

__all__ = ["WandbBackend"]


class WandbBackend:
    """A run of the project "vivace", or of WANDB_PROJECT."""

    def start(self, run: TrackedRun) -> Tracked:
        # its own crashes are reported to its makers by default
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # its service starts slowly on a busy machine, and nobody waits for it
        os.environ.setdefault("WANDB__SERVICE_WAIT", "120")
        import wandb

        # asked on a terminal, nobody would answer: the run goes on meanwhile
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        run_id = run.known_as or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run_id,
            resume="allow",
            mode=mode,
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            settings=wandb.Settings(
                silent=True,
                # to make its links it would remove what has their names
                symlink=False,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )
        # a resumed run may be longer than it was
        self._run.config.update(dict(run.params), allow_val_change=True)
        folder = Path(self._run.dir).parent
        place = f"offline, upload it with: wandb sync {folder}" if self._run.offline else str(self._run.url)
        return Tracked(run_id=run_id, place=place, is_continued=run.known_as is not None)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, figures: Mapping[str, float], step: int, status: Status) -> None:
        self._run.summary.update(dict(figures))
        self._run.finish(exit_code=0 if status == "finished" else 1)
