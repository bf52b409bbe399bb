"""What a run leaves behind as it goes: metrics.csv and TensorBoard event files."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivace.config import to_yaml
from vivace.errors import TrainingError
from vivace.files import atomic_file
from vivace.notices import warn
from vivace.training.recording.callbacks import Reporter, RunInfo, ValidationInfo
from vivace.training.result import TrainResult

__all__ = ["COLUMNS", "ROBUST_COLUMNS", "SET_COLUMNS", "Curves", "columns_of"]

COLUMNS = (
    "epoch",
    "step",
    "seconds",
    "lr",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "val_macro_f1",
    "val_balanced_accuracy",
    "images_per_second",
)
# of adversarial training, after the others
ROBUST_COLUMNS = ("val_robust", "val_robust_newest", "num_probed", "num_overfits")
# of sets of labels
SET_COLUMNS = (*COLUMNS[:5], "train_label_accuracy", "val_loss", "val_map", "images_per_second")


def columns_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of metrics.csv in a run with such validations."""
    columns = SET_COLUMNS if "val_map" in row else COLUMNS
    return (*columns, *ROBUST_COLUMNS) if "val_robust" in row else columns


class Curves(Reporter):
    """Writes metrics.csv (a row per validation) and event files into the run folder.

    A row is on the disk when the call returns. Raises TrainingError when it can't be written.
    """

    def __init__(self, run: Path, *, resumed_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._csv = run / "metrics.csv"
        # the events after the checkpoint that a run resumes from belong to steps that are done again
        purge = None if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=purge)
        # a run that fails leaves no thread and no open file behind either
        self._closed = weakref.finalize(self, _close, self._writer)

    def on_start(self, run: RunInfo) -> None:
        """Keep the recipe as text beside the curves."""
        if run.resumed_step is None:
            self._writer.add_text("recipe", _as_code(to_yaml(run.recipe)))

    def on_validation(self, validation: ValidationInfo) -> None:
        """Write the whole table again, atomically: a resumed run leaves no row twice."""
        text = io.StringIO()
        columns = columns_of(validation.history[-1])
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(row[key]) for key in columns} for row in validation.history)
        try:
            with atomic_file(self._csv) as file:
                file.write(text.getvalue().encode())
            self._add_events(validation)
        except OSError as error:
            raise TrainingError(
                f"the curves could not be written: {self._csv.parent} ({error.strerror}). "
                "Free some space and go on with `resume=True`."
            ) from error

    def _add_events(self, validation: ValidationInfo) -> None:
        row = validation.history[-1]
        for name in columns_of(row)[3:]:
            group, _, what = name.partition("_") if name.startswith(("train_", "val_")) else ("run", "", name)
            self._writer.add_scalar(f"{group}/{what}", row[name], validation.step)
        for name in ("forecast_top1", "forecast_map"):
            if (value := getattr(validation, name)) is not None:
                self._writer.add_scalar(f"run/{name}", value, validation.step)
        self._writer.flush()

    def on_message(self, message: str) -> None:
        """Keep it as text beside the curves."""
        self._writer.add_text("messages", message)

    def on_end(self, result: TrainResult) -> None:
        """Keep the final figures as text."""
        try:
            self._writer.add_text("result", _as_code(json.dumps(result.to_dict(), indent=2)))
            self._writer.flush()
        except OSError as error:
            warn(
                f"the final figures could not be written to {self._csv.parent} ({error.strerror}); result.json has them"
            )

    def close(self) -> None:
        """Finish the event file."""
        self._closed()


def _close(writer: Any) -> None:
    # rows that could not be written have been reported as such
    with contextlib.suppress(OSError):
        writer.close()


def _as_code(text: str) -> str:
    """`text` for TensorBoard, which takes it for Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
