"""SIGTERM and Ctrl-C save and stop; a second signal stops at once (fault 24). Two runs in one folder (fault 29)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from same_weights import assert_same_weights

from vivace.errors import Interrupted, RunFolderError
from vivace.training.engine import Engine
from vivace.training.result import TrainResult
from vivace.training.runfolder import RunFolder, new_run_path, newest_run

RunTiny = Callable[..., TrainResult]


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    set_rates = Engine._set_rates

    def signalling(self: Engine) -> None:
        if self.counters.step == step:
            os.kill(os.getpid(), number)
        set_rates(self)

    monkeypatch.setattr(Engine, "_set_rates", signalling)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops_and_the_run_goes_on_bitwise(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    unbroken = run_tiny("unbroken")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_at(patch, 4, number)
        with pytest.raises(Interrupted, match=r"after step 5; go on with --resume") as caught:
            run_tiny("stopped")
    assert caught.value.exit_status == status
    # the handler of the host program is back
    assert signal.getsignal(number) == before
    # the step in which the signal came is kept
    saved = unbroken.run.parent / "stopped" / "checkpoints" / "step-000000005.safetensors"
    assert saved.is_file()
    assert_same_weights(unbroken, run_tiny("stopped", resume=True))


PROGRAM = """
import os, signal, sys, time
from vivace.cli import main
from vivace.training.engine import Engine
step = Engine._step
def slow(self, *arguments):
    step(self, *arguments)
    print("step", flush=True)
    time.sleep(float(sys.argv[1]))
Engine._step = slow
sys.exit(main(sys.argv[2:]))
"""


def start(folder: Path, run: Path, *, pause: float) -> subprocess.Popen[str]:
    options = ["--epochs", "50", "--batch-size", "6", "--size", "32", "--tune", "off", "--run", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(pause), "train", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "step\n"
    return process


def test_the_command_exits_with_143_and_a_checkpoint(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    process = start(make_folder(), tmp_path / "run", pause=0.1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped by SIGTERM after step" in stderr
    assert "Traceback" not in stderr
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.safetensors"))


def test_a_second_signal_stops_at_once(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    # the loop is in a step that takes a minute: the first signal waits for it, the second does not
    process = start(make_folder(), tmp_path / "run", pause=60)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 10


def test_two_runs_in_one_folder_are_refused(run_tiny: RunTiny, tmp_path: Path) -> None:
    with (
        RunFolderLock(tmp_path / "run"),
        pytest.raises(
            RunFolderError, match=rf"^another run is using the folder: .*run \(process {os.getpid()}\)\. Wait for it"
        ),
    ):
        run_tiny("run")


class RunFolderLock:
    """Another process's hold of a run folder: flock is per open file, so a second one here stands for it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.folder = RunFolder(self.path, resume=False)

    def __exit__(self, *_: object) -> None:
        self.folder.release()


def test_a_folder_with_an_earlier_run_is_refused(run_tiny: RunTiny) -> None:
    run_tiny()
    with pytest.raises(
        RunFolderError, match=r"^the run folder is in use by an earlier run: .*Go on with it by --resume"
    ):
        run_tiny()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(run_tiny: RunTiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunFolderError, match=r"^the run folder can't be written: .*\(Not a directory\)\. Choose another"
    ):
        run_tiny("file/run")


def test_refused_data_leave_no_run_folder(run_tiny: RunTiny, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    from vivace.errors import DataError

    bad = make_folder("bad")
    (bad / "red" / "000.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"000\.png"):
        run_tiny("fresh", data=bad)
    assert not (tmp_path / "fresh").exists()


def test_there_must_be_a_run_to_resume(run_tiny: RunTiny) -> None:
    with pytest.raises(RunFolderError, match=r"^there is no run to resume in .*Leave --resume out"):
        run_tiny("nothing", resume=True)


def test_the_newest_run_of_a_data_set_is_resumed_and_new_ones_get_a_number(run_tiny: RunTiny, tmp_path: Path) -> None:
    first, second = run_tiny("colours-a"), run_tiny("colours-b")
    os.utime(first.run / "run.json", (1, 1))
    assert newest_run(tmp_path, "colours") == second.run
    with pytest.raises(RunFolderError, match=r"^there is no run of cats to resume"):
        newest_run(tmp_path, "cats")
    assert new_run_path(tmp_path, "colours-a").name == "colours-a-2"
    assert new_run_path(tmp_path, "colours-z").name == "colours-z"
