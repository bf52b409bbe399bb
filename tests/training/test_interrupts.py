"""SIGTERM and Ctrl-C save and stop; a second signal stops at once (fault 24)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from judging import judged_as
from same_weights import assert_same_weights

from vivace.errors import Interrupted
from vivace.signals import StopSignals
from vivace.training import run as run_module
from vivace.training.loop.engine import Engine
from vivace.training.loop.session import Session
from vivace.training.loop.signals import Stopped, raised_signals
from vivace.training.result import TrainResult

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
        with pytest.raises(
            Interrupted, match=r"after step 5; go on with `vivace\.train\(.*, resume=True, run='.*stopped'\)`"
        ) as caught:
            run_tiny("stopped")
    assert caught.value.exit_status == status
    # the handler of the host program is back
    assert signal.getsignal(number) == before
    # the step in which the signal came is kept
    saved = unbroken.run.parent / "stopped" / "checkpoints" / "step-000000005.safetensors"
    assert saved.is_file()
    assert_same_weights(unbroken, run_tiny("stopped", resume=True))


def test_a_signal_in_the_last_step_keeps_the_best_weights(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    top1 = iter([0.2, 0.8, 0.4] * 2)
    monkeypatch.setattr(Session, "_validate", lambda *_: judged_as(next(top1)))
    unbroken = run_tiny("unbroken", {"early_stopping": 3})
    with monkeypatch.context() as patch:
        signal_at(patch, 8, signal.SIGTERM)
        with pytest.raises(Interrupted, match="after step 9"):
            run_tiny("stopped", {"early_stopping": 3})
    assert_same_weights(unbroken, run_tiny("stopped", resume=True))


def test_a_signal_after_the_loop_says_how_to_go_on(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = run_tiny("unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "finish", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(
            Interrupted, match=r"outside of the steps .*saved; go on with `vivace\.train\(.*resume=True"
        ):
            run_tiny("stopped")
    assert_same_weights(unbroken, run_tiny("stopped", resume=True))


def test_a_signal_before_the_run_began_says_so(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "select_device", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="before the run began: nothing was written, give the same command again"):
        run_tiny("stopped")


def test_a_signal_that_the_parent_ignores_stays_ignored_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raised_signals():
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(Stopped, match="SIGTERM") as found:
                os.kill(os.getpid(), signal.SIGTERM)
        assert found.value.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_the_host_keeps_its_signals() -> None:
    before, during = signal.getsignal(signal.SIGTERM), []

    def watch() -> None:
        with StopSignals():
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert during == [before]


PROGRAM = """
import signal, sys, time
from vivace.cli import main
from vivace.training.loop.engine import Engine
step, set_handler = Engine._step, signal.signal
def told(number, handler):
    def handle(*arguments):
        print("signalled", flush=True)
        return handler(*arguments)
    return set_handler(number, handle if callable(handler) else handler)
signal.signal = told
def slow(self, *arguments):
    step(self, *arguments)
    print("step", flush=True)
    time.sleep(float(sys.argv[1]))
Engine._step = slow
sys.exit(main(sys.argv[2:]))
"""


def start(folder: Path, recipe: Path, run: Path, *, pause: float) -> subprocess.Popen[str]:
    """The command in a process of its own, which takes a pause of so many seconds after each step; in its first one."""
    options = ["--config", str(recipe), "--epochs", "50", "--tune", "off", "--run", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(pause), "train", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "step\n"
    return process


def test_the_command_exits_with_143_and_a_checkpoint(
    make_folder: Callable[..., Path], tiny_yaml: Path, tmp_path: Path
) -> None:
    process = start(make_folder(), tiny_yaml, tmp_path / "run", pause=0.1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 143
    assert "stopped by SIGTERM after step" in stderr
    assert "Traceback" not in stderr
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.safetensors"))


def test_a_second_signal_stops_at_once(make_folder: Callable[..., Path], tiny_yaml: Path, tmp_path: Path) -> None:
    # the loop is in a step that takes hours: the first signal waits for it, the second does not
    process = start(make_folder(), tiny_yaml, tmp_path / "run", pause=10_000)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "signalled\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    assert process.returncode == 130
