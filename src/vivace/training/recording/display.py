"""Progress on stderr: a live display in a terminal, otherwise a line for each validation."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import TYPE_CHECKING

from vivace.bars import terminal
from vivace.errors import printable
from vivace.training.recording.callbacks import Reporter, RunInfo, StepInfo, ValidationInfo

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["LiveDisplay"]


class LiveDisplay(Reporter):
    """A progress bar with loss, accuracy, images/s, time left and the forecast; a row for each validation.

    If stderr is not a terminal (a log, a notebook), rows and messages are plain lines. console: where it is shown;
    default: stderr.
    """

    def __init__(self, *, epochs: str, quiet: bool = False, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        # Jupyter sets FORCE_COLOR for what runs in a cell, and shows a moving cursor as page after page
        force_terminal = None if sys.stderr.isatty() else False
        self._console = console or Console(file=terminal(), stderr=True, quiet=quiet, force_terminal=force_terminal)
        self._progress = Progress(
            TextColumn("{task.percentage:>3.0f} %"),
            BarColumn(bar_width=12),
            # two lines fit into 80 columns
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            refresh_per_second=4,
            transient=True,
        )
        self._epochs = epochs
        self._task = self._progress.add_task("training", total=1.0, figures="")
        self._rate: float | None = None
        self._last: ValidationInfo | None = None
        self._quiet = quiet
        self._monitor: str | None = None
        self._column = "val_top1"
        self._live = self._console.is_terminal and not quiet
        if not self._live:
            self.every_steps = sys.maxsize

    def on_start(self, run: RunInfo) -> None:
        """Show the metric that the run is judged by, where it is no other column."""
        self._monitor = {"macro_f1": "macro F1", "balanced_accuracy": "balanced"}.get(run.recipe.monitor)
        self._column = f"val_{run.recipe.monitor}"

    def __enter__(self) -> LiveDisplay:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.stop()

    def on_step(self, step: StepInfo) -> None:
        if not self._live:
            return
        rate = step.images_per_second
        self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate
        plan = [f"epoch {math.ceil(step.epoch)}/{self._epochs}", f"{self._rate:,.0f} img/s"]
        if step.seconds_left is not None:
            plan.append(f"{_clock(step.seconds_left)} left")
        result = []
        if step.train_loss is not None and step.train_top1 is not None:
            result.append(f"loss {step.train_loss:.3f}")
            result.append(f"train {100 * step.train_top1:.1f} %")
        if self._last is not None:
            score, _, forecast, name = _scores(self._last)
            result.append(f"val{name} {100 * score:.1f} %")
            if forecast is not None:
                result.append(f"forecast {100 * forecast:.1f} %")
        figures = "\n".join(" · ".join(parts) for parts in (plan, result) if parts)
        self._progress.update(self._task, completed=step.progress, figures=figures)

    def on_validation(self, validation: ValidationInfo) -> None:
        self._last = validation
        epoch = round(validation.epoch, 2)
        score, trained, _, name = _scores(validation)
        parts = (
            f"epoch {epoch:>5g}  train {validation.train_loss:.4f} {100 * trained:5.1f} %"
            f"  val {validation.val_loss:.4f}{name} ",
            f"{100 * score:5.1f} %",
            f"  {validation.images_per_second:>7,.0f} img/s  {_clock(validation.seconds)}",
        )
        if validation.val_robust is not None:
            judged = f"  robust ≤ {100 * validation.val_robust:.1f} %"
            parts = (parts[0], parts[1], judged + parts[2])
        elif self._monitor is not None:
            judged = f"  {self._monitor} {100 * getattr(validation, self._column):5.1f} %"
            parts = (parts[0], parts[1], judged + parts[2])
        if self._live:
            self._console.print(f"{parts[0]}[bold]{parts[1]}[/]{parts[2]}", highlight=False)
        else:
            self._write_line("".join(parts))

    def on_message(self, message: str) -> None:
        if self._live:
            self._console.print(printable(message), style="yellow", markup=False, highlight=False)
        else:
            self._write_line(message)

    def _write_line(self, text: str) -> None:
        """A plain line: rich would wrap it in a log, and a notebook would show it as a separate block."""
        if self._quiet:
            return
        # a closed stderr must not end the run
        with contextlib.suppress(OSError, ValueError):
            print(printable(text), file=self._console.file, flush=True)


def _scores(validation: ValidationInfo) -> tuple[float, float, float | None, str]:
    """(score of validation, of training, forecast, what it is called beside "val" where it is no accuracy)."""
    if validation.val_map is None or validation.train_label_accuracy is None:
        return validation.val_top1, validation.train_top1, validation.forecast_top1, ""
    return validation.val_map, validation.train_label_accuracy, validation.forecast_map, " mAP"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
