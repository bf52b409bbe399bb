"""The display: rows and a bar on a terminal, next to nothing elsewhere."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vivace.bars import CountingBar
from vivace.training.recipes.recipe import Recipe
from vivace.training.recording.callbacks import RunInfo, StepInfo, ValidationInfo
from vivace.training.recording.display import LiveDisplay

ROW: dict[str, Any] = {
    "epoch": 3.0,
    "step": 30,
    "progress": 0.6,
    "lr": 0.1,
    "train_loss": 0.61234,
    "train_top1": 0.8125,
    "val_loss": 0.7,
    "val_top1": 0.7512,
    "val_macro_f1": 0.6543,
    "val_balanced_accuracy": 0.7,
    "images_per_second": 12345.6,
    "seconds": 75.4,
}


def terminal(width: int = 80) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, color_system=None, _environ={"TERM": "xterm"})
    return console, text


def step(**changes: Any) -> StepInfo:
    values: dict[str, Any] = {
        "step": 25,
        "epoch": 2.5,
        "progress": 0.5,
        "lr": 0.1,
        "train_loss": 0.6,
        "train_top1": 0.8,
    }
    return StepInfo(**values | {"images_per_second": 1000.0, "seconds_left": 3725.0} | changes)


def validation(forecast: float | None = None, **changes: Any) -> ValidationInfo:
    row = ROW | changes
    best = {"best_val_top1": row["val_top1"], "best_step": row["step"]}
    return ValidationInfo(**row, **best, forecast_top1=forecast, history=(row,))


def show(display: LiveDisplay, info: StepInfo) -> str:
    display.on_step(info)
    (task,) = display._progress.tasks
    return str(task.fields["figures"])


def test_a_terminal_gets_a_row_for_each_validation_that_fits_its_width() -> None:
    console, text = terminal()
    with LiveDisplay(epochs="5", console=console) as display:
        display.on_validation(validation())
        display.on_validation(validation(epoch=10.25, seconds=3725.0, images_per_second=123456.0))
    lines = [line.strip() for line in text.getvalue().replace("\r", "\n").splitlines() if "val " in line]
    rows = [line[line.index("epoch") :] for line in lines]
    assert rows[0] == "epoch     3  train 0.6123  81.2 %  val 0.7000  75.1 %   12,346 img/s  1:15"
    assert rows[1].endswith("123,456 img/s  1:02:05")
    assert max(map(len, rows)) <= 80


def test_the_bar_tells_loss_accuracy_speed_time_left_and_forecast() -> None:
    console, text = terminal(200)
    with LiveDisplay(epochs="5", console=console) as display:
        assert show(display, step()) == "epoch 3/5 · 1,000 img/s · 1:02:05 left\nloss 0.600 · train 80.0 %"
        display.on_validation(validation(0.8))
        # the speed is a running average
        figures = show(display, step(progress=0.6, images_per_second=2000.0, seconds_left=None))
        assert figures == "epoch 3/5 · 1,100 img/s\nloss 0.600 · train 80.0 % · val 75.1 % · forecast 80.0 %"
        assert display._progress.tasks[0].percentage == 60
        display._progress.refresh()
    assert "forecast 80.0 %" in text.getvalue()


def test_an_epoch_is_the_one_shown_after_its_last_step_too() -> None:
    console, _ = terminal()
    display = LiveDisplay(epochs="5", console=console)
    assert show(display, step(step=1, epoch=0.1)).startswith("epoch 1/5")
    assert show(display, step(step=50, epoch=5.0, train_loss=None, train_top1=None)).startswith(
        "epoch 5/5 · 1,000 img/s"
    )


LINE = "epoch     3  train 0.6123  81.2 %  val 0.7000  75.1 %   12,346 img/s  1:15"


def test_where_stderr_is_no_terminal_it_gets_a_line_for_each_validation_and_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    long = "a message that is longer than any terminal is wide is not broken: " + "x" * 200
    with LiveDisplay(epochs="5") as display:
        display.on_step(step())
        assert capsys.readouterr() == ("", "")
        for _ in range(3):
            display.on_validation(validation(0.8))
        assert capsys.readouterr() == ("", f"{LINE}\n" * 3)
        # no markup is read into a message
        display.on_message("out of memory: [bold] images at a time")
        display.on_message(long)
    assert capsys.readouterr() == ("", f"out of memory: [bold] images at a time\n{long}\n")


def test_a_notebook_gets_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(stderr=True, force_jupyter=True)
    with LiveDisplay(epochs="5", console=console) as display:
        display.on_step(step())
        display.on_validation(validation(0.8))
        display.on_message("execution: fp32")
    assert capsys.readouterr() == ("", f"{LINE}\nexecution: fp32\n")


def test_a_stderr_that_is_closed_ends_no_run() -> None:
    closed = io.StringIO()
    closed.close()
    with LiveDisplay(epochs="5", console=Console(file=closed)) as display:
        display.on_validation(validation(0.8))
        display.on_message("execution: fp32")


def test_quiet_without_a_terminal_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveDisplay(epochs="5", quiet=True) as display:
        display.on_validation(validation(0.8))
        display.on_message("execution: fp32")
    assert capsys.readouterr() == ("", "")


def test_quiet_is_quiet_on_a_terminal_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with LiveDisplay(epochs="5", quiet=True) as display:
        display.on_step(step())
        display.on_validation(validation(0.8))
        display.on_message("execution: fp32")
    assert capsys.readouterr() == ("", "")


def test_the_bar_is_gone_after_an_error() -> None:
    console, text = terminal()
    with pytest.raises(ValueError, match="boom"), LiveDisplay(epochs="5", console=console):
        raise ValueError("boom")
    # the cursor, hidden while the bar moves, is shown again
    assert text.getvalue().rindex("\x1b[?25h") > text.getvalue().rindex("\x1b[?25l")


def test_decoding_shows_a_bar_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with CountingBar("decoding") as bar:
        bar.progress(1, 10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with CountingBar("decoding", quiet=True) as bar:
        bar.progress(1, 10)
        bar.stage("writing", "the first of two")
    assert capsys.readouterr().err == ""
    with CountingBar("decoding") as bar:
        bar.progress(7, 10)
    shown = capsys.readouterr().err
    assert "decoding" in shown
    assert "7/10" in shown
    with CountingBar("decoding") as bar:
        bar.progress(7, 10)
        bar.stage("writing", "the first of two")
        bar.progress(3, 20)
    # as the last thing that it shows
    shown = capsys.readouterr().err
    assert "writing: the first of two" in shown
    assert "3/20" in shown


def test_colours_that_are_forced_make_no_terminal_of_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with LiveDisplay(epochs="3") as display:
        display.on_step(step())
        display.on_validation(validation())
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert shown.startswith("epoch     3  train 0.6123")


def started(recipe: Recipe) -> RunInfo:
    return RunInfo(
        run=Path("run"),
        recipe=recipe,
        data={},
        classes=("a", "b"),
        device="cpu",
        num_steps=9,
        within_seconds=None,
        target=None,
        resumed_step=None,
        history=(),
    )


def test_a_run_that_is_judged_by_another_metric_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveDisplay(epochs="3") as display:
        display.on_start(started(Recipe(monitor="macro_f1", early_stopping=3)))
        display.on_validation(validation())
    assert "val 0.7000  75.1 %  macro F1  65.4 %   12,346 img/s" in capsys.readouterr().err
