"""What a run leaves behind: the table and the event files, read back."""

from __future__ import annotations

import csv
import gc
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vivace.errors import TrainingError
from vivace.training.loop.progress import validation_info, validation_row
from vivace.training.loop.state import Counters
from vivace.training.loop.validation import Validation
from vivace.training.recording.callbacks import ValidationInfo
from vivace.training.recording.curves import COLUMNS, Curves
from vivace.training.result import TrainResult

# a test takes the folder away, which TensorBoard's own thread meets whenever it next writes
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def make_row(step: int, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {name: float(step) for name in COLUMNS}
    return row | {"step": step, "progress": step / 10, "val_top1": step / 7} | changes


def told(history: list[dict[str, Any]], forecast: float | None = None) -> ValidationInfo:
    row = history[-1]
    best = {"best_val_top1": row["val_top1"], "best_step": row["step"]}
    return ValidationInfo(**row, **best, forecast_top1=forecast, history=tuple(history))


def read_table(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def read_events(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_the_curves_of_a_run_are_a_table_and_events(run_tiny: Callable[..., TrainResult]) -> None:
    result = run_tiny()
    rows = read_table(result.run)
    assert tuple(rows[0]) == COLUMNS
    assert [float(row["epoch"]) for row in rows] == [1, 2, 3]
    assert float(rows[-1]["val_top1"]) == pytest.approx(result.val_top1)
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    for name, column in {
        "train/loss": "train_loss",
        "train/top1": "train_top1",
        "val/loss": "val_loss",
        "val/top1": "val_top1",
        "run/lr": "lr",
        "run/images_per_second": "images_per_second",
    }.items():
        steps, values = zip(*read_events(result.run, name), strict=True)
        assert list(steps) == [int(row["step"]) for row in rows]
        assert values == pytest.approx([float(row[column]) for row in rows], rel=1e-5)
    assert len(read_events(result.run, "run/forecast_top1")) == 1


@pytest.mark.parametrize(("last", "expected"), [({"seconds_after": 8.0}, 50.0), ({}, 10.0)])
def test_the_rate_is_that_of_training_alone(last: dict[str, float], expected: float) -> None:
    # the last validation took 8 s: of adversarial training on few images as long as an epoch
    history = [make_row(1, seconds=0.0, **last)]
    counters = Counters(step=3, seconds=10.0, count=100, history=history)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    row = validation_row(SimpleNamespace(counters=counters, optimizer=optimizer), Validation(loss=1.0, top1=0.5), 3)
    assert row["images_per_second"] == pytest.approx(expected)


def test_a_validation_notes_when_it_ended(
    run_tiny: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def watched(counters: Counters, forecast_top1: float | None) -> ValidationInfo:
        seen.append(dict(counters.history[-1]))
        return validation_info(counters, forecast_top1)

    monkeypatch.setattr("vivace.training.loop.engine.validation_info", watched)
    run_tiny()
    assert len(seen) == 3
    assert all(row["seconds_after"] > row["seconds"] for row in seen)


def test_a_row_is_on_the_disk_when_it_is_reported(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    history = [make_row(1), make_row(2)]
    curves.on_validation(told(history, 0.75))
    assert [(row["step"], row["val_top1"]) for row in read_table(tmp_path)] == [("1", "0.142857"), ("2", "0.285714")]
    assert read_events(tmp_path, "run/forecast_top1") == [(2, 0.75)]
    curves.close()


def test_messages_are_kept_beside_the_curves(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    for index in range(300):
        curves.on_message(f"message {index}")
    curves.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    messages = [event.tensor_proto.string_val[0] for event in events.Tensors("messages/text_summary")]
    assert messages == [b"message %d" % index for index in range(300)]


def test_a_resumed_run_leaves_no_step_twice(tmp_path: Path) -> None:
    first = Curves(tmp_path)
    history = [make_row(step) for step in (2, 4, 6)]
    for index in range(len(history)):
        first.on_validation(told(history[: index + 1]))
    first.close()
    # killed after step 6; the newest checkpoint is of step 4
    again = make_row(6, val_loss=60.0)
    second = Curves(tmp_path, resumed_step=4)
    second.on_validation(told([*history[:2], again]))
    second.close()
    assert [row["val_loss"] for row in read_table(tmp_path)] == ["2", "4", "60"]
    assert read_events(tmp_path, "val/loss") == [(2, 2.0), (4, 4.0), (6, 60.0)]


def test_curves_that_can_not_be_written_are_told_on_one_line(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"^the curves could not be written: .*Free some space.*`resume=True`\.$"):
        curves.on_validation(told([make_row(1)]))


def test_curves_that_are_forgotten_leave_no_thread_behind(tmp_path: Path) -> None:
    # by name, not by number: one of another test may just be ending
    before = set(threading.enumerate())
    curves = Curves(tmp_path)
    assert set(threading.enumerate()) - before
    del curves
    gc.collect()
    assert not set(threading.enumerate()) - before
