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
import torch
from judging import judged_as
from killing import Killed, die_after, not_ended, unbroken_and_resumed
from same_weights import assert_same_weights
from torch.amp import GradScaler

from vivace.config import to_yaml
from vivace.errors import CheckpointError, TrainingError
from vivace.training.folder.checkpoints import load_checkpoint, save_checkpoint
from vivace.training.loop.engine import Engine
from vivace.training.loop.session import Session
from vivace.training.loop.validation import Validation
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]


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
    unbroken, resumed = unbroken_and_resumed(run_tiny, monkeypatch, changes, step)
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


# a child that kills itself: in a step, when half of a checkpoint is on the disk, or before it gets its name
SUICIDE = """
import os, signal, sys
from pathlib import Path
from vivace.training.train import train
from vivace.training.loop.step import Stepper
where, number, count = sys.argv[1], int(sys.argv[2]), 0
def count_down(before_death=lambda: None):
    global count
    count += 1
    if count == number:
        before_death()
        os.kill(os.getpid(), signal.SIGKILL)
step, fsync, replace = Stepper._update, os.fsync, Path.replace
def dying_step(*arguments):
    count_down()
    return step(*arguments)
def dying_fsync(file):
    if "step-" in os.readlink(f"/proc/self/fd/{file}"):
        count_down(lambda: os.ftruncate(file, os.fstat(file).st_size // 2))
    fsync(file)
def dying_replace(self, target):
    if "step-" in str(target):
        count_down()
    return replace(self, target)
if where == "step":
    Stepper._update = dying_step
elif where == "fsync":
    os.fsync = dying_fsync
else:
    Path.replace = dying_replace
train(sys.argv[3], Path(sys.argv[4]), run=sys.argv[5], tune=False, quiet=True)
"""


@pytest.mark.parametrize(("where", "number"), [("step", 6), ("fsync", 2), ("replace", 5)])
def test_sigkill_in_an_epoch_or_a_save_loses_nothing(
    run_tiny: RunTiny, tmp_path: Path, where: str, number: int
) -> None:
    # a checkpoint after every step
    unbroken = run_tiny("unbroken", {"checkpoint_minutes": 1e-9})
    recipe = shutil.copy(unbroken.run / "recipe.yaml", tmp_path / "recipe.yaml")
    killed = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", SUICIDE, where, str(number), str(tmp_path / "colours"), str(recipe), str(killed)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    saved = [path.name for path in sorted((killed / "checkpoints").glob("step-*"))]
    assert saved == [f"step-{step:09d}.safetensors" for step in range(1, number)][-2:]
    assert len(list((killed / "checkpoints").glob(".*.tmp"))) == (where != "step")
    assert_same_weights(unbroken, run_tiny("killed", resume=True))
    assert not list((killed / "checkpoints").glob(".*.tmp"))


def full_disk_for(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Let the disk be full when a file of this name is written to it for the so-and-so-many-th time."""
    fsync, count = os.fsync, 0

    def full(file: int) -> None:
        nonlocal count
        if name in str(Path(f"/proc/self/fd/{file}").readlink()):
            count += 1
            if count == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        (
            "step-",
            2,
            r"^the checkpoint could not be written: .*\(No space left on device\)\. The previous one is whole",
        ),
        (
            "step-",
            1,
            r"^the checkpoint could not be written: .*\. It is the first one: nothing is saved yet: free some space "
            r"and go on with `vivace\.train\(.*, resume=True, run=.*\)`, which begins anew\.$",
        ),
        ("best", 2, r"^the checkpoint could not be written: .*best.*\(No space left on device\)\. The previous"),
        (
            "metrics.csv",
            2,
            r"^the curves could not be written: .*\(No space left on device\)\. Free some space and go on",
        ),
        ("bundle.json", 1, r"^the result could not be written: .*bundle \(No space left on device\)\. The training is"),
        ("result.json", 1, r"^the result could not be written: .*result\.json \(No space left on device\)"),
    ],
)
def test_a_disk_that_fills_up_is_told_and_nothing_is_lost(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, name: str, number: int, message: str
) -> None:
    changes = {"early_stopping": 3}

    def ever_better(_: Session, execution: Any, model: torch.nn.Module) -> Validation:
        num_steps = next(tensor for name, tensor in model.named_buffers() if name.endswith("num_batches_tracked"))
        return judged_as(float(num_steps) / 100)

    monkeypatch.setattr(Session, "_validate", ever_better)
    unbroken = run_tiny("unbroken", changes)
    with monkeypatch.context() as patch:
        full_disk_for(patch, name, number)
        with pytest.raises(TrainingError, match=message):
            run_tiny("full", changes)
    assert_same_weights(unbroken, run_tiny("full", resume=True))


def test_a_finished_run_is_extended_as_if_it_had_been_longer_from_the_start(run_tiny: RunTiny) -> None:
    changes = {"schedule.name": "constant", "schedule.warmup": 0.0}
    long = run_tiny("long", {**changes, "epochs": 4})
    run_tiny("short", {**changes, "epochs": 2})
    extended = run_tiny("short", resume=True, epochs=4)
    assert_same_weights(long, extended)
    assert extended.epochs == 4


def test_an_extension_that_is_killed_goes_on_to_its_own_end(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"schedule.name": "constant", "schedule.warmup": 0.0}
    long = run_tiny("long", {**changes, "epochs": 4})
    run_tiny("short", {**changes, "epochs": 2})
    with monkeypatch.context() as patch:
        die_after(patch, 8)
        with pytest.raises(Killed):
            run_tiny("short", resume=True, epochs=4)
    resumed = run_tiny("short", resume=True)
    assert resumed.epochs == 4
    assert_same_weights(long, resumed)


def test_a_run_is_not_made_shorter_than_it_is(run_tiny: RunTiny) -> None:
    first = run_tiny()
    with pytest.raises(
        CheckpointError, match=r"^the run can't be made shorter than it is: it is in epoch 3, got epochs 2"
    ):
        run_tiny(resume=True, epochs=2)
    # the refusal has changed nothing
    assert_same_weights(first, run_tiny(resume=True))


def test_resuming_a_finished_run_changes_nothing(run_tiny: RunTiny) -> None:
    first = run_tiny()
    before = (first.bundle / "model.safetensors").read_bytes()
    second = run_tiny(resume=True)
    assert (second.bundle / "model.safetensors").read_bytes() == before
    assert second.num_images_seen == first.num_images_seen
    assert second.total_seconds >= first.total_seconds


def test_a_run_that_stopped_before_its_first_checkpoint_starts_again(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = run_tiny("unbroken")
    with monkeypatch.context() as patch:
        die_after(patch, 2)
        with pytest.raises(Killed):
            run_tiny("killed")
    assert not list((unbroken.run.parent / "killed" / "checkpoints").iterdir())
    assert_same_weights(unbroken, run_tiny("killed", resume=True))


def test_a_fine_tuning_is_resumed_bitwise_and_without_the_file_that_it_began_with(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = tmp_path / "w.safetensors"
    shutil.copy(run_tiny("pretrained").bundle / "model.safetensors", weights)
    changes = {"model.weights": str(weights), "head_epochs": 1, "checkpoint_minutes": 1e-9}
    unbroken = run_tiny("unbroken", changes)
    for step in (2, 5):
        # while the head is trained alone, and after that
        with monkeypatch.context() as patch:
            die_after(patch, step)
            with pytest.raises(Killed):
                run_tiny(f"killed-{step}", changes)
    weights.unlink()
    for step in (2, 5):
        assert_same_weights(unbroken, run_tiny(f"killed-{step}", resume=True))


def test_fp16_with_its_scale_is_resumed_bitwise(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"precision": "fp16", "checkpoint_minutes": 1e-9}
    # a scale that is too large at first, and is doubled after two good steps rather than 2000: it never rests
    monkeypatch.setattr(GradScaler.__init__, "__defaults__", ("cpu", 2.0**20, 2.0, 0.5, 2, True))
    unbroken = run_tiny("unbroken", changes)
    with monkeypatch.context() as patch:
        die_after(patch, 5)
        with pytest.raises(Killed):
            run_tiny("killed", changes)
    resumed = run_tiny("killed", resume=True)
    assert_same_weights(unbroken, resumed)
    scalers = [
        load_checkpoint(max((run / "checkpoints").glob("step-*")))["scaler"] for run in (unbroken.run, resumed.run)
    ]
    assert scalers[0] == scalers[1]


def test_resuming_on_another_kind_of_device_is_refused(run_tiny: RunTiny) -> None:
    result = run_tiny()
    for path in (result.run / "checkpoints").glob("step-*"):
        save_checkpoint(path, {**load_checkpoint(path), "device": "cuda"})
    with pytest.raises(
        CheckpointError,
        match=r"^the run can't be resumed on another device: it began on cuda, now cpu\. Give `device='cuda'`",
    ):
        run_tiny(resume=True)


def test_the_program_that_trains_gets_its_settings_back(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = Engine._step

    def recording(self: Engine, *arguments: Any) -> None:
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()))
        step(self, *arguments)

    monkeypatch.setattr(Engine, "_step", recording)
    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = run_tiny("first", {"deterministic": True})
    assert torch.equal(torch.rand(3), expected)
    assert set(seen) == {(True, 1)}
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 2
    # on a processor with a fixed number of threads nothing depends on timing anyway
    assert_same_weights(first, run_tiny("second"))


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
    told = r"with other data: the run began on colours \(.*\) with 24 images; .* colours2 \(.*\) with 30 images"
    with pytest.raises(CheckpointError, match=told):
        run_tiny(resume=True, data=other)


def test_the_recipe_of_a_run_reproduces_it(run_tiny: RunTiny) -> None:
    first = run_tiny("first")
    second = run_tiny("second", recipe=first.run / "recipe.yaml")
    assert_same_weights(first, second)
    assert to_yaml_text(first) == to_yaml_text(second)


def to_yaml_text(result: TrainResult) -> str:
    from vivace.config import from_yaml
    from vivace.training.recipes.recipe import Recipe

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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("counters", None),
        ("counters", {"step": "x"}),
        ("model", {}),
        ("optimizer", 5),
        ("generator", "x"),
        ("device", None),
        ("history", [1]),
        ("step", -1),
        ("step", True),
        ("epoch", 10**30),
        ("progress", float("nan")),
        ("lr_scale", 2.0),
        ("micro_batch_size", 0),
        ("best_value", -5.0),
        ("best_step", 0.5),
        ("head_only", 1),
    ],
)
def test_a_sealed_checkpoint_of_wrong_types_is_refused_in_one_line(
    run_tiny: Callable[..., Any], key: str, value: object
) -> None:
    folder = run_tiny(changes={"epochs": 1}).run / "checkpoints"
    not_ended(folder.parent)
    path = max(folder.glob("step-*.safetensors"))
    tree = load_checkpoint(path)
    (tree["counters"] if key in tree["counters"] else tree)[key] = value
    for other in folder.iterdir():
        other.unlink()
    save_checkpoint(path, tree)
    with pytest.raises(CheckpointError, match=r"^the (checkpoint does not fit|run can't be resumed on another device)"):
        run_tiny(resume=True)


def test_a_run_that_had_its_epochs_is_not_written_over_when_they_are_asked_for_again(run_tiny: RunTiny) -> None:
    result = run_tiny(epochs=2)
    before = {path.name: path.read_bytes() for path in result.run.iterdir() if path.is_file()}
    again = run_tiny(resume=True, epochs=2)
    assert again.total_seconds == result.total_seconds
    assert {path.name: path.read_bytes() for path in result.run.iterdir() if path.is_file()} == before
