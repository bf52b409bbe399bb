"""The display: rows and a bar on a terminal, next to nothing elsewhere."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from vivace.training.display import LiveDisplay, Reporters, counting_bar
from vivace.training.state import Counters

ROW: dict[str, Any] = {
    "epoch": 3.0,
    "step": 30,
    "train_loss": 0.61234,
    "train_top1": 0.8125,
    "val_loss": 0.7,
    "val_top1": 0.7512,
    "images_per_second": 12345.6,
    "seconds": 75.4,
}


def terminal(width: int = 80) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, color_system=None, _environ={"TERM": "xterm"})
    return console, text


def counters(**changes: Any) -> Counters:
    return Counters(
        **{"step": 25, "epoch": 2, "batch": 5, "loss_sum": 60.0, "correct_sum": 80.0, "count": 100} | changes
    )


def show(display: LiveDisplay, counters: Counters, *, rate: float = 1000.0, left: float | None = 3725.0) -> str:
    display.on_step(counters, rate, left)
    (task,) = display._progress.tasks
    return str(task.fields["figures"])


def test_a_terminal_gets_a_row_for_each_validation_that_fits_its_width() -> None:
    console, text = terminal()
    with LiveDisplay(epochs="5", console=console) as display:
        display.on_validation(ROW, [ROW], None)
        hours = ROW | {"epoch": 10.25, "seconds": 3725.0, "images_per_second": 123456.0}
        display.on_validation(hours, [ROW, hours], None)
    lines = [line.strip() for line in text.getvalue().replace("\r", "\n").splitlines() if "val " in line]
    rows = [line[line.index("epoch") :] for line in lines]
    assert rows[0] == "epoch     3  train 0.6123  81.2 %  val 0.7000  75.1 %   12,346 img/s  1:15"
    assert rows[1].endswith("123,456 img/s  1:02:05")
    assert max(map(len, rows)) <= 80


def test_the_bar_tells_loss_accuracy_speed_time_left_and_forecast() -> None:
    console, text = terminal(200)
    with LiveDisplay(epochs="5", console=console) as display:
        assert show(display, counters()) == "epoch 3/5 · 1,000 img/s · 1:02:05 left\nloss 0.600 · train 80.0 %"
        display.on_validation(ROW, [ROW], 0.8)
        # the speed is a running average
        figures = show(display, counters(progress=0.6), rate=2000.0, left=None)
        assert figures == "epoch 3/5 · 1,100 img/s\nloss 0.600 · train 80.0 % · val 75.1 % · forecast 80.0 %"
        assert display._progress.tasks[0].percentage == 60
        display._progress.refresh()
    assert "forecast 80.0 %" in text.getvalue()


def test_an_epoch_is_the_one_shown_after_its_last_step_too() -> None:
    console, _ = terminal()
    display = LiveDisplay(epochs="5", console=console)
    assert show(display, counters(step=1, epoch=0, batch=1)).startswith("epoch 1/5")
    # the counters stand at the beginning of the sixth epoch, which there will not be
    assert show(display, counters(step=50, epoch=5, batch=0, count=0)).startswith("epoch 5/5 · 1,000 img/s")


LINE = "epoch     3  train 0.6123  81.2 %  val 0.7000  75.1 %   12,346 img/s  1:15"


def test_where_stderr_is_no_terminal_it_gets_a_line_for_each_validation_and_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    long = "a message that is longer than any terminal is wide is not broken: " + "x" * 200
    with LiveDisplay(epochs="5") as display:
        display.on_step(counters(), 1000.0, 10.0)
        assert capsys.readouterr() == ("", "")
        for _ in range(3):
            display.on_validation(ROW, [ROW], 0.8)
        assert capsys.readouterr() == ("", f"{LINE}\n" * 3)
        # no markup is read into a message
        display.on_message("out of memory: [bold] images at a time")
        display.on_message(long)
    assert capsys.readouterr() == ("", f"out of memory: [bold] images at a time\n{long}\n")


def test_a_notebook_gets_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(stderr=True, force_jupyter=True)
    with LiveDisplay(epochs="5", console=console) as display:
        display.on_step(counters(), 1000.0, 10.0)
        display.on_validation(ROW, [ROW], 0.8)
        display.on_message("setup: fp32")
    assert capsys.readouterr() == ("", f"{LINE}\nsetup: fp32\n")


def test_a_stderr_that_is_closed_ends_no_run() -> None:
    closed = io.StringIO()
    closed.close()
    with LiveDisplay(epochs="5", console=Console(file=closed)) as display:
        display.on_validation(ROW, [ROW], 0.8)
        display.on_message("setup: fp32")


def test_quiet_without_a_terminal_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveDisplay(epochs="5", quiet=True) as display:
        display.on_validation(ROW, [ROW], 0.8)
        display.on_message("setup: fp32")
    assert capsys.readouterr() == ("", "")


def test_quiet_is_quiet_on_a_terminal_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with LiveDisplay(epochs="5", quiet=True) as display:
        display.on_step(counters(), 1000.0, 10.0)
        display.on_validation(ROW, [ROW], 0.8)
        display.on_message("setup: fp32")
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
    progress, close = counting_bar("decoding")
    progress(1, 10)
    close()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    progress, close = counting_bar("decoding", quiet=True)
    progress(1, 10)
    close()
    assert capsys.readouterr().err == ""
    progress, close = counting_bar("decoding")
    progress(7, 10)
    close()
    shown = capsys.readouterr().err
    assert "decoding" in shown
    assert "7/10" in shown


def test_each_of_several_reporters_is_told_everything() -> None:
    told: list[tuple[str, Any]] = []

    class Listener:
        def __init__(self, name: str) -> None:
            self.name = name

        def on_step(self, *arguments: Any) -> None:
            told.append((f"{self.name} step", arguments))

        def on_validation(self, *arguments: Any) -> None:
            told.append((f"{self.name} validation", arguments))

        def on_message(self, *arguments: Any) -> None:
            told.append((f"{self.name} message", arguments))

    both = Reporters(Listener("a"), Listener("b"))
    now = counters()
    both.on_step(now, 10.0, None)
    both.on_validation(ROW, [ROW], 0.5)
    both.on_message("hello")
    assert told == [
        *((f"{name} step", (now, 10.0, None)) for name in "ab"),
        *((f"{name} validation", (ROW, [ROW], 0.5)) for name in "ab"),
        *((f"{name} message", ("hello",)) for name in "ab"),
    ]
