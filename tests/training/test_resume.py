"""What was killed, stopped or extended ends with bitwise the weights of the unbroken run (faults 23, 25, 30)."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from same_weights import assert_same_weights

from vivace.config import to_yaml
from vivace.errors import CheckpointError, TrainingError
from vivace.training.engine import Engine
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]


class Killed(BaseException):
    """Stands for SIGKILL inside one process: nothing catches it, nothing is cleaned up by us."""


def die_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the loop die after so many optimizer steps, before anything is saved."""
    after_step = Engine._after_step

    def dying(self: Engine, *arguments: Any) -> None:
        if self.counters.step == step:
            raise Killed
        after_step(self, *arguments)

    monkeypatch.setattr(Engine, "_after_step", dying)


@pytest.mark.parametrize("step", [1, 4, 8])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer.name": "adamw", "optimizer.nesterov": False, "micro_batch_size": 3, "checkpoint_minutes": 1e-9},
        {"ema_decay": None, "augment.trivial_augment": True, "augment.cutout": 4, "clip_grad_norm": 0.5},
    ],
    ids=["muon-ema", "adamw-accumulation-saved-every-step", "augmented-clipped"],
)
def test_a_killed_run_ends_with_the_weights_of_the_unbroken_one(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], step: int
) -> None:
    unbroken = run_tiny("unbroken", changes)
    with monkeypatch.context() as patch:
        die_after(patch, step)
        with pytest.raises(Killed):
            run_tiny("killed", changes)
    resumed = run_tiny("killed", resume=True)
    assert_same_weights(unbroken, resumed)
    assert resumed.num_images_seen == unbroken.num_images_seen
    assert resumed.epochs == unbroken.epochs


def test_metrics_and_events_of_a_resumed_run_hold_each_validation_once(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    unbroken = run_tiny("unbroken")
    with monkeypatch.context() as patch:
        # after the second validation, before its checkpoint
        save = Engine.save

        def dying(self: Engine) -> None:
            if self.counters.step == 6:
                raise Killed
            save(self)

        patch.setattr(Engine, "save", dying)
        with pytest.raises(Killed):
            run_tiny("killed")
    resumed = run_tiny("killed", resume=True)

    def table(result: TrainResult) -> list[dict[str, str]]:
        with (result.run / "metrics.csv").open() as file:
            return [
                {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
                for row in csv.DictReader(file)
            ]

    assert table(resumed) == table(unbroken)
    events = EventAccumulator(str(resumed.run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/top1")] == [3, 6, 9]


def test_sigkill_in_the_middle_of_a_save_loses_nothing(
    run_tiny: RunTiny, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """A child that kills itself between the bytes of its second checkpoint and the renaming."""
    unbroken = run_tiny("unbroken")
    program = """
import os, signal, sys
from pathlib import Path
count, replace = 0, Path.replace
def dying(self, target):
    global count
    if "step-" in str(target):
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = dying
from vivace.training.run import train
train(sys.argv[1], Path(sys.argv[2]), run=sys.argv[3], tune=False, quiet=True)
"""
    recipe = shutil.copy(unbroken.run / "recipe.yaml", tmp_path / "recipe.yaml")
    data = tmp_path / "colours"
    done = subprocess.run(
        [sys.executable, "-c", program, str(data), str(recipe), str(tmp_path / "killed")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = list((tmp_path / "killed" / "checkpoints").glob(".*.tmp"))
    assert len(left) == 1
    resumed = run_tiny("killed", resume=True)
    assert_same_weights(unbroken, resumed)
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*.tmp"))


def test_a_full_disk_leaves_the_previous_checkpoint_whole(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from vivace.training import engine

    unbroken = run_tiny("unbroken")
    save = engine.save_checkpoint
    count = 0

    def full(path: Path, tree: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(path, tree)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "save_checkpoint", full)
        with pytest.raises(
            TrainingError, match=r"^the checkpoint could not be written: .*\(No space left on device\)\. The previous"
        ):
            run_tiny("full")
    assert_same_weights(unbroken, run_tiny("full", resume=True))


def test_a_finished_run_is_extended_as_if_it_had_been_longer_from_the_start(run_tiny: RunTiny) -> None:
    changes = {"schedule.name": "constant", "schedule.warmup": 0.0}
    long = run_tiny("long", {**changes, "epochs": 4})
    run_tiny("short", {**changes, "epochs": 2})
    extended = run_tiny("short", resume=True, epochs=4)
    assert_same_weights(long, extended)
    assert extended.epochs == 4


def test_resuming_a_finished_run_changes_nothing(run_tiny: RunTiny) -> None:
    first = run_tiny()
    before = (first.bundle / "model.safetensors").read_bytes()
    second = run_tiny(resume=True)
    assert (second.bundle / "model.safetensors").read_bytes() == before
    assert second.num_images_seen == first.num_images_seen
    assert second.total_seconds >= first.total_seconds


def test_resuming_with_another_recipe_is_refused_with_the_difference(run_tiny: RunTiny) -> None:
    run_tiny()
    with pytest.raises(CheckpointError) as caught:
        run_tiny(changes={"optimizer.lr": 0.5, "batch_size": 4}, resume=True)
    message = str(caught.value)
    assert "batch_size: 6 → 4" in message
    assert "optimizer.lr: 0.05 → 0.5" in message


def test_resuming_with_other_data_is_refused_with_the_difference(
    run_tiny: RunTiny, make_folder: Callable[..., Path]
) -> None:
    run_tiny()
    other = make_folder("colours2", per_class=10)
    with pytest.raises(
        CheckpointError, match=r"with other data: it began on colours with 24 images .*, now colours2 with 30"
    ):
        run_tiny(resume=True, data=other)


def test_the_recipe_of_a_run_reproduces_it(run_tiny: RunTiny) -> None:
    first = run_tiny("first")
    second = run_tiny("second", recipe=first.run / "recipe.yaml")
    assert_same_weights(first, second)
    assert to_yaml_text(first) == to_yaml_text(second)


def to_yaml_text(result: TrainResult) -> str:
    from vivace.config import from_yaml
    from vivace.training.recipe import Recipe

    return to_yaml(from_yaml(Recipe, result.run / "recipe.yaml"))


def test_the_result_on_disk_is_the_one_returned(run_tiny: RunTiny) -> None:
    result = run_tiny()
    stored = json.loads((result.run / "result.json").read_text())
    assert stored["val_top1"] == result.val_top1
    assert {
        "bundle",
        "run",
        "val_top1",
        "test_top1",
        "epochs",
        "train_seconds",
        "total_seconds",
        "num_images_seen",
    } <= set(stored)
    assert result.test_top1 is None
