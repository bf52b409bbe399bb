"""A run folder has one owner, is refused when it can't be written, and is whole or not there (faults 26, 29, 30)."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from killing import not_ended

from vivace.errors import CheckpointError, DataError, RunFolderError
from vivace.training.folder import runfolder
from vivace.training.folder.finding import new_run_path, run_to_resume
from vivace.training.folder.runfolder import RunFolder, check_same_recipe
from vivace.training.recipes.recipe import Recipe
from vivace.training.result import TrainResult

RunTiny = Callable[..., TrainResult]

HOLDER = """
import sys, time
from pathlib import Path
from vivace.training.folder.runfolder import RunFolder
folder = RunFolder(Path(sys.argv[1]), resume=False)
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[int]:
    """The process that holds the run folder in the block; it is killed at its end."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def test_two_processes_in_one_folder_are_refused_and_a_killed_one_leaves_it_free(
    run_tiny: RunTiny, tmp_path: Path
) -> None:
    with (
        held_by_another_process(tmp_path / "run") as holder,
        pytest.raises(
            RunFolderError, match=rf"^another run is using the folder: .*run \(process {holder}\)\. Wait for it"
        ),
    ):
        run_tiny("run")
    assert run_tiny("run").epochs == 3


def test_a_run_may_not_be_resumed_while_it_runs(run_tiny: RunTiny) -> None:
    result = run_tiny()
    holder = RunFolder(result.run, resume=True)
    with pytest.raises(
        RunFolderError, match=r"^another run of this process .* is using the folder: .* choose another by run=\.\.\.$"
    ):
        run_tiny(resume=True)
    holder.release()
    run_tiny(resume=True)


def test_a_folder_with_an_earlier_run_is_refused(run_tiny: RunTiny) -> None:
    run_tiny()
    for _ in range(2):
        # the refusal does not keep the folder locked
        with pytest.raises(
            RunFolderError,
            match=r"^the run folder holds an earlier run: .*Continue it with `resume=True`",
        ):
            run_tiny()
    run_tiny(resume=True)


def test_a_run_that_begins_and_ends_while_we_wait_for_the_folder_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowLock(runfolder.FolderLock):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            (folder / "recipe.yaml").write_text("another's")

    monkeypatch.setattr(runfolder, "FolderLock", SlowLock)
    with pytest.raises(RunFolderError, match=r"^the run folder holds an earlier run"):
        RunFolder(tmp_path / "run", resume=False)


@pytest.mark.parametrize("below", ["a file", "proc"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    run_tiny: RunTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    def decoding(*_: Any, **__: Any) -> Any:
        raise AssertionError("images were decoded for nothing")

    monkeypatch.setattr("vivace.training.dataset.open_cache", decoding)
    (tmp_path / "file").write_text("")
    name, reason = ("file/run", "Not a directory") if below == "a file" else ("/proc/run", "No such file or directory")
    with pytest.raises(RunFolderError, match=rf"^the run folder can't be written: .* \({reason}\)\. Choose another"):
        run_tiny(name)


def test_a_folder_without_room_for_checkpoints_is_refused_and_set_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runfolder, "_check_free", lambda *_, **__: None)
        patch.setattr(runfolder, "_check_plain", lambda *_, **__: None)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "checkpoints").write_text("a file")
        with pytest.raises(
            RunFolderError, match=r"^the run folder can't be written: .*run \(File exists\)\. Free some"
        ):
            RunFolder(tmp_path / "run", resume=False)
    (tmp_path / "run" / "checkpoints").unlink()
    RunFolder(tmp_path / "run", resume=False).release()


@pytest.mark.parametrize("name", ["env.json", "tune.json", "run.json", "recipe.yaml"])
def test_a_disk_that_is_full_at_the_start_leaves_no_run(
    run_tiny: RunTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fsync = os.fsync

    def full(file: int) -> None:
        if name in str(Path(f"/proc/self/fd/{file}").readlink()):
            raise OSError(28, os.strerror(28))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFolderError, match=r"^the run folder can't be written: .*\(No space left on device\)"):
            run_tiny("run")
    # what was written before is no obstacle to the next try
    assert not (tmp_path / "run").exists()
    run_tiny("run")


def test_refused_data_leave_no_run_folder(run_tiny: RunTiny, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    bad = make_folder("bad")
    (bad / "red" / "000.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"000\.png"):
        run_tiny("fresh", {"data.on_bad_image": "refuse"}, data=bad)
    assert not (tmp_path / "fresh").exists()


def test_there_must_be_a_run_to_resume(run_tiny: RunTiny, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"^there is no run to resume in .*Leave `resume` out"):
        run_tiny("nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "Expecting property name"),
        ("[]", "lacks data or contract"),
        ("{}", "lacks data or contract"),
        (
            '{"data": {"name": "colours", "num_images": 24}, "contract": {"target": null}}',
            "lacks fingerprint, within_se",
        ),
    ],
)
def test_a_damaged_run_file_is_refused(run_tiny: RunTiny, text: str, problem: str) -> None:
    result = run_tiny()
    (result.run / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"^the run can't be resumed: .*run\.json.*{problem}.*Start a new run"):
        run_tiny(resume=True)


def test_the_newest_run_of_a_data_set_is_resumed_and_new_ones_get_a_number(run_tiny: RunTiny, tmp_path: Path) -> None:
    first, second = run_tiny("colours-a"), run_tiny("colours-b")
    os.utime(first.run / "run.json", (1, 1))
    assert run_to_resume(tmp_path, ["colours"]) == second.run
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert run_to_resume(tmp_path, ["colours"]) == second.run
    with pytest.raises(RunFolderError, match=r"^there is no run of cats to resume"):
        run_to_resume(tmp_path, ["cats"])
    assert new_run_path(tmp_path, "colours-a").name == "colours-a-2"
    assert new_run_path(tmp_path, "colours-z").name == "colours-z"


def test_a_run_that_has_not_ended_is_resumed_before_a_newer_one_that_has(run_tiny: RunTiny, tmp_path: Path) -> None:
    first, second = run_tiny("first"), run_tiny("second")
    os.utime(first.run / "run.json", (1, 1))
    assert run_to_resume(tmp_path, ["colours"]) == second.run
    not_ended(first.run)
    assert run_to_resume(tmp_path, ["colours"]) == first.run


def test_resuming_a_run_that_has_ended_changes_nothing_and_gives_its_result(run_tiny: RunTiny) -> None:
    result = run_tiny()

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in result.run.rglob("*") if path.is_file() and path.name != ".lock"}

    before = contents()
    again = run_tiny(resume=True)
    assert contents() == before
    assert again == dataclasses.replace(result, report=again.report)
    # what asks for more goes on
    assert run_tiny(resume=True, epochs=result.epochs + 1).epochs == result.epochs + 1
    # a record that can't be read is made again
    (result.run / "result.json").write_text('{"epochs": "many"}')
    assert run_tiny(resume=True).total_seconds > 0
    assert json.loads((result.run / "result.json").read_text())["epochs"] == result.epochs + 1


def test_only_the_length_of_a_run_may_change(run_tiny: RunTiny) -> None:
    check_same_recipe(Recipe(epochs=3), Recipe(epochs=5, checkpoint_minutes=1.0, early_stopping=2))
    with pytest.raises(CheckpointError) as caught:
        check_same_recipe(Recipe(), Recipe(seed=1, ema_decay=0.9))
    assert str(caught.value) == (
        "the run can't be resumed with another recipe: ema_decay: None → 0.9; seed: 0 → 1. "
        "Leave these options out, or start a new run with another `run`."
    )


def test_a_run_folder_holds_what_the_run_is(run_tiny: RunTiny) -> None:
    result = run_tiny("run", target=0.99, changes={"epochs": 1})
    assert {path.name for path in result.run.iterdir()} >= {
        "recipe.yaml",
        "env.json",
        "tune.json",
        "run.json",
        "result.json",
        "metrics.csv",
        "tensorboard",
        "checkpoints",
        "bundle",
    }
    facts = json.loads((result.run / "run.json").read_text())
    assert facts["contract"] == {"within_seconds": None, "target": 0.99, "planned": False}
    assert (facts["data"]["num_images"], facts["data"]["num_train"], facts["data"]["num_val"]) == (24, 18, 6)


@pytest.mark.parametrize("name", runfolder.WRITTEN)
def test_a_folder_that_holds_something_else_under_the_name_of_a_runs_is_refused(
    run_tiny: RunTiny, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir()
    path.write_text("my thesis")
    with pytest.raises(
        RunFolderError, match=rf"^the run folder holds something else: .*{name}, which a run would write"
    ):
        run_tiny()
    assert path.read_text() == "my thesis"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_with_other_files_is_taken_and_they_stay(run_tiny: RunTiny, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("notes.txt", ".mine.tmp", ".bundle.tmp", "x.0123abcd.tmp"):
        (tmp_path / "run" / name).write_text("mine")
    run_tiny()
    run_tiny(resume=True)
    for name in ("notes.txt", ".mine.tmp", ".bundle.tmp", "x.0123abcd.tmp"):
        assert (tmp_path / "run" / name).read_text() == "mine"


def test_what_a_killed_run_left_half_written_is_gone_after_the_next_start(run_tiny: RunTiny, tmp_path: Path) -> None:
    run_tiny()
    run = tmp_path / "run"
    left = [run / f".{name}.0123abcd.tmp" for name in ("recipe.yaml", "run.json", "metrics.csv", "curves.png")]
    left.append(run / "checkpoints" / ".best.safetensors.0123abcd.tmp")
    for path in left:
        path.write_text("half")
    (run / ".bundle.0123abcd.tmp").mkdir()
    # killed after the old bundle was set aside
    (run / "bundle").rename(run / ".bundle.4567abcd.old")
    run_tiny(resume=True)
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]


def put(path: Path, kind: str, target: Path) -> None:
    """A link to `target`, a pipe or a hard link at `path`, in place of what was there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "hard link":
        path.hardlink_to(target)
    else:
        path.symlink_to(target)


@pytest.mark.parametrize("kind", ["link", "pipe", "hard link", "text"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_lock_that_is_not_vivaces_is_refused_and_stays_as_it_is(
    tmp_path: Path, kind: str, resume: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    precious, run = tmp_path / "thesis.txt", tmp_path / "run"
    precious.write_text("my thesis")
    run.mkdir()
    (run / "recipe.yaml").write_text("epochs: 1") if resume else None
    if kind == "text":
        (run / ".lock").write_text("held by another tool")
    else:
        put(run / ".lock", kind, precious)
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(RunFolderError, match=r"^the run folder's lock was not written by vivace: .*\.lock "):
        RunFolder(run, resume=resume)
    assert precious.read_text() == "my thesis"
    assert sorted(path.name for path in run.iterdir()) == before
    if kind == "text":
        assert (run / ".lock").read_text() == "held by another tool"


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", ["recipe.yaml", *runfolder.WRITTEN, "checkpoints/step-000000099.safetensors"])
def test_a_run_is_not_resumed_through_a_link_or_a_pipe(
    finished_run: Path, tmp_path: Path, name: str, kind: str
) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    shutil.copytree(finished_run, run)
    if (run / name).is_dir() or "." not in name:
        mine.mkdir()
        for file in ("step-000000001.safetensors", ".notes.deadbeef.tmp", ".best.safetensors.deadbeef.tmp"):
            (mine / file).write_text("mine")
    else:
        mine.write_text("epochs: 1")
    put(run / name, kind, mine)
    before = contents(tmp_path)
    cause = (
        "there is no run to resume" if (name, kind) == ("recipe.yaml", "pipe") else "the run folder holds (a link|some)"
    )
    with pytest.raises(RunFolderError, match=f"^{cause}"):
        RunFolder(run, resume=True)
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes | None]:
    """Name → bytes of all that lies in a folder; None for what is no file. Links and pipes are not opened."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else None
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all the names that a finished run has."""
    run = tmp_path_factory.mktemp("finished") / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "tensorboard").mkdir()
    (run / "bundle").mkdir()
    for name in ("recipe.yaml", *runfolder.FILES, "checkpoints/step-000000009.safetensors", "bundle/model.safetensors"):
        (run / name).write_text("{}")
    (run / ".lock").write_text("4711")
    return run


@pytest.mark.parametrize("kept", [name for name in runfolder.WRITTEN if name != "tensorboard"])
def test_a_finished_run_without_its_recipe_is_never_started_anew(
    run_tiny: RunTiny, finished_run: Path, tmp_path: Path, kept: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    for path in run.iterdir():
        if path.name not in (kept, ".lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(run)
    with pytest.raises(RunFolderError, match=rf"^the run folder holds a part of an earlier run: .*{kept}, which"):
        run_tiny()
    assert contents(run) == before


def test_a_refused_command_removes_only_what_it_made(
    run_tiny: RunTiny, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    bad = make_folder("bad")
    (bad / "red" / "000.png").write_bytes(b"not an image")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"000\.png"):
        run_tiny("run", {"data.on_bad_image": "refuse"}, data=bad)
    assert contents(tmp_path / "run") == {"notes.txt": b"mine"}
    folder = RunFolder(tmp_path / "run", resume=False)
    # put there meanwhile
    (tmp_path / "run" / "left_out.csv").write_text("mine")
    folder.claim("env.json").write_text("{}")
    folder.discard_if_unused()
    folder.release()
    assert contents(tmp_path / "run") == {"notes.txt": b"mine", "left_out.csv": b"mine"}


def test_what_a_run_left_that_was_killed_before_its_first_step_is_no_obstacle(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("4711 new")
    (run / "left_out.csv").write_text("split,file")
    (run / "checkpoints").mkdir()
    folder = RunFolder(run, resume=False)
    folder.discard_if_unused()
    folder.release()
    assert not run.exists()


def test_the_lock_says_when_a_run_has_begun(run_tiny: RunTiny) -> None:
    assert (run_tiny().run / ".lock").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("contract", "within_seconds", "x"),
        ("contract", "within_seconds", True),
        ("contract", "target", "0.9"),
        ("contract", "target", 2),
        ("data", "fingerprint", 5),
        ("data", "name", None),
        ("data", "num_images", [1]),
    ],
)
def test_facts_of_a_wrong_type_are_refused(tmp_path: Path, part: str, name: str, value: object) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: 1")
    facts: dict[str, dict[str, object]] = {
        "data": {"fingerprint": "f", "name": "n", "num_images": 1},
        "contract": {"within_seconds": None, "target": 0.5},
    }
    (tmp_path / "run.json").write_text(json.dumps(facts))
    folder = RunFolder(tmp_path, resume=True)
    assert folder.saved_facts() == facts
    facts[part][name] = value
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=rf"^the run can't be resumed: .*run\.json has a wrong {name}"):
        folder.saved_facts()
    folder.release()


def test_another_runs_facts_are_no_pipe_that_is_waited_for(tmp_path: Path) -> None:
    for name in ("pipe", "link"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "run.json")
    (tmp_path / "link" / "run.json").symlink_to("/dev/zero")
    with pytest.raises(RunFolderError, match=r"^there is no run of colours to resume"):
        run_to_resume(tmp_path, ["colours"])
