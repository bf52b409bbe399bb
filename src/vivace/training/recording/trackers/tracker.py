"""Reports a run to an experiment tracker, in a thread of its own.

Training never waits for a server and never fails with it: what goes wrong there is one warning, and metrics.csv has
all figures anyway. The tracker's id of the run and the last step that it knows are kept in the run folder, so that a
resumed run continues the same tracked run and reports no validation twice.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from vivace.config import to_dict
from vivace.errors import Interrupted, first_line, text_of
from vivace.files import read_regular, write_json
from vivace.notices import warn
from vivace.training.folder.runfolder import flat
from vivace.training.recording.callbacks import Callback, RunInfo, ValidationInfo
from vivace.training.recording.curves import columns_of
from vivace.training.recording.trackers.backend import Backend, Status, TrackedRun
from vivace.training.recording.trackers.secrets import without_secrets
from vivace.training.result import TrainResult

__all__ = ["Tracker", "record_name"]

FIGURES = (
    "val_top1",
    "test_top1",
    "val_map",
    "test_map",
    "epochs",
    "train_seconds",
    "total_seconds",
    "num_images_seen",
    "target_seconds",
)
DATA = ("name", "fingerprint", "num_images", "num_train", "num_val", "num_test")
# how long the end of a run waits for what has not been reported, after this much with a message
MAX_WAIT_SECONDS, QUIET_SECONDS = 60.0, 2.0
# of a run that fails
MAX_WAIT_ON_ERROR_SECONDS = 10.0
MAX_RECORD_BYTES = 10_000


def record_name(tracker: str) -> str:
    """The file in a run's folder that tells how the tracker calls the run."""
    return f"tracking.{tracker}.json"


class Tracker(Callback):
    """A callback that reports to one tracker.

    make: makes its backend, in the thread that uses it. on_message: gets a line that says where the run is tracked.
    """

    def __init__(self, name: str, make: Callable[[], Backend], *, on_message: Callable[[str], None]) -> None:
        self._name, self._make, self._on_message = name, make, on_message
        self._jobs: SimpleQueue[Callable[[Backend], None] | None] = SimpleQueue()
        self._place: str | None = None
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._last_step = 0

    def on_start(self, run: RunInfo) -> None:
        """Begin to report; of a resumed run also the validations that the tracker has missed."""
        self._record = run.run / record_name(self._name)
        known_as, self._reported_step = _read_record(self._record) if run.resumed_step is not None else (None, 0)
        tracked = TrackedRun(name=run.run.name, folder=run.run.resolve(), params=_params(run), known_as=known_as)
        self._thread = threading.Thread(target=self._work, args=(tracked,), name=f"vivace-{self._name}", daemon=True)
        self._thread.start()
        for row in run.history:
            self._log(row)

    def on_validation(self, validation: ValidationInfo) -> None:
        """Report a validation."""
        self._log(validation.history[-1])
        self._tell()

    def on_end(self, result: TrainResult) -> None:
        """Report the final figures, and wait until all is reported."""
        values = {name: getattr(result, name) for name in FIGURES}
        figures = {
            f"final_{name}": float(value) for name, value in values.items() if value is not None and value == value
        }
        self._finish(figures, "finished", MAX_WAIT_SECONDS)

    def on_error(self, error: BaseException) -> None:
        """Report that the run was stopped, or failed."""
        is_stop = isinstance(error, Interrupted | KeyboardInterrupt)
        self._finish({}, "stopped" if is_stop else "failed", MAX_WAIT_ON_ERROR_SECONDS)

    def _log(self, row: Mapping[str, Any]) -> None:
        step = self._last_step = int(row["step"])
        metrics = {name: float(row[name]) for name in columns_of(row) if name != "step"}
        self._jobs.put(lambda backend: self._report(backend, metrics, step))

    def _finish(self, figures: Mapping[str, float], status: Status, max_wait_seconds: float) -> None:
        if self._thread is None:
            return
        step = self._last_step
        self._jobs.put(lambda backend: backend.finish(figures, step, status))
        self._jobs.put(None)
        ends_at = time.monotonic() + max_wait_seconds
        self._thread.join(QUIET_SECONDS)
        if self._thread.is_alive():
            self._on_message(f"waiting for {self._name}")
            self._thread.join(max(0.0, ends_at - time.monotonic()))
        self._tell()
        if self._thread.is_alive():
            warn(
                f"{self._name} did not take all of the run within {max_wait_seconds:g} s: metrics.csv has what it lacks"
            )

    def _tell(self) -> None:
        """Pass on what the thread has found out, each once."""
        place, self._place = self._place, None
        if place is not None:
            self._on_message(f"{self._name}: {without_secrets(place)}")
        failure, self._failure = self._failure, None
        if failure is not None:
            told = without_secrets(first_line(failure)) if text_of(failure) else ""
            told = f"{type(failure).__name__}: {told}" if told else type(failure).__name__
            # what a server answers names no parameter of ours
            told = told.replace("`", "'")
            warn(f"{self._name} no longer tracks the run: {told}. metrics.csv has all figures")

    def _work(self, run: TrackedRun) -> None:
        # SystemExit too: a library that gives up must not look like one that is done
        try:
            backend = self._make()
            tracked = backend.start(run)
            if not tracked.is_continued:
                self._reported_step = 0
            self._run_id, self._place = tracked.run_id, tracked.place
            self._save_record()
            while (job := self._jobs.get()) is not None:
                job(backend)
        except BaseException as error:
            self._failure = error

    def _report(self, backend: Backend, metrics: Mapping[str, float], step: int) -> None:
        # a resumed run validates some steps again, with the same result
        if step > self._reported_step:
            backend.log(metrics, step)
            self._reported_step = step
            self._save_record()

    def _save_record(self) -> None:
        write_json(self._record, {"run_id": self._run_id, "last_step": self._reported_step})


def _params(run: RunInfo) -> dict[str, Any]:
    data = {f"data_source.{name}": run.data[name] for name in DATA if name in run.data}
    asked = {"within_seconds": run.within_seconds, "target": run.target, "device": run.device}
    bundle = str((run.run / "bundle").resolve())
    return flat(to_dict(run.recipe)) | data | {"num_classes": len(run.classes), "bundle": bundle} | asked


def _read_record(path: Path) -> tuple[str | None, int]:
    """(the tracker's id of the run, the last step that it knows); (None, 0) if nothing usable is recorded."""
    try:
        record = json.loads(read_regular(path, MAX_RECORD_BYTES))
        run_id, step = record["run_id"], record["last_step"]
    except FileNotFoundError:
        return None, 0
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        run_id = step = None
    if not isinstance(run_id, str) or re.fullmatch(r"[\w.-]{1,200}", run_id) is None or type(step) is not int:
        warn(f"{path} does not tell which tracked run to continue: a new one is started")
        return None, 0
    return run_id, step
