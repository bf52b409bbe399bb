"""What a run leaves behind as it goes: metrics.csv and TensorBoard event files."""

from __future__ import annotations

import csv
import io
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vivace.errors import TrainingError
from vivace.files import atomic_file
from vivace.training.state import Counters

__all__ = ["COLUMNS", "Tracker"]

COLUMNS = (
    "epoch",
    "step",
    "seconds",
    "lr",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "images_per_second",
)


class Tracker:
    """A Reporter that writes metrics.csv (a row per validation) and event files into the run folder.

    A row is on the disk when the call returns. Raises TrainingError when it can't be written.
    """

    def __init__(self, run: Path, *, resumed_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._csv = run / "metrics.csv"
        # the events after the checkpoint that a run resumes from belong to steps that are done again
        purge = None if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=purge)
        # a run that fails leaves no thread and no open file behind either
        self._closed = weakref.finalize(self, self._writer.close)

    def on_step(self, counters: Counters, images_per_second: float, seconds_left: float | None) -> None:
        """Steps are not recorded one by one: a validation's row holds their averages."""

    def on_validation(self, row: dict[str, Any], history: Sequence[dict[str, Any]], forecast: float | None) -> None:
        """Write the whole table again, atomically: a resumed run leaves no row twice."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(item[key]) for key in COLUMNS} for item in history)
        try:
            with atomic_file(self._csv) as file:
                file.write(text.getvalue().encode())
            self._add_events(row, forecast)
        except OSError as error:
            raise TrainingError(
                f"the curves could not be written: {self._csv.parent} ({error.strerror}). "
                "Free some space and go on with --resume."
            ) from error

    def _add_events(self, row: dict[str, Any], forecast: float | None) -> None:
        for name in ("train_loss", "train_top1", "val_loss", "val_top1", "lr", "images_per_second"):
            group, _, what = name.partition("_") if name.startswith(("train_", "val_")) else ("run", "", name)
            self._writer.add_scalar(f"{group}/{what}", row[name], row["step"])
        if forecast is not None:
            self._writer.add_scalar("run/forecast_top1", forecast, row["step"])
        self._writer.flush()

    def on_message(self, message: str) -> None:
        """Keep it as text beside the curves."""
        self._writer.add_text("messages", message)

    def close(self) -> None:
        """Finish the event file."""
        self._closed()


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
