"""Functions in a process of their own: what they return and raise arrives, and nothing of them outlives its time."""

from __future__ import annotations

import _thread
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from waiting import dies, is_running, raises_image_error, until_gone, wait_for, waits_with_a_child

from vivace.acceleration.budget import Budget
from vivace.acceleration.worker import Worker, WorkerDied
from vivace.errors import DataError, OutOfTime, VivaceError

FOR_EVER = math.inf


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def test_one_process_runs_one_function_after_the_other(worker: Worker) -> None:
    pid = worker.run(FOR_EVER, os.getpid)
    assert pid != os.getpid()
    assert worker.run(FOR_EVER, os.getpid) == pid
    sent = np.arange(300_000).reshape(3, -1)
    np.testing.assert_array_equal(worker.run(FOR_EVER, np.transpose, sent), sent.T)


def test_what_a_function_raises_is_raised_here_and_the_process_lives_on(worker: Worker) -> None:
    pid = worker.run(FOR_EVER, os.getpid)
    with pytest.raises(ZeroDivisionError):
        worker.run(FOR_EVER, divmod, 1, 0)
    # an error that can't be sent arrives as the nearest of its kind: its exit status stays
    with pytest.raises(DataError, match=r"an image is damaged: got a\.jpg") as raised:
        worker.run(FOR_EVER, raises_image_error)
    assert raised.value.exit_status == 2
    assert worker.run(FOR_EVER, os.getpid) == pid


def test_a_process_that_dies_is_told_and_the_next_function_has_a_new_one(worker: Worker) -> None:
    pid = worker.run(FOR_EVER, os.getpid)
    with pytest.raises(WorkerDied, match=r"its process died \(exit status 3\)"):
        worker.run(FOR_EVER, dies)
    assert worker.run(FOR_EVER, os.getpid) != pid


def test_out_of_time_nothing_that_was_started_runs_any_more(worker: Worker, tmp_path: Path) -> None:
    # it has imported by then what it needs
    assert worker.run(FOR_EVER, is_running, os.getpid())
    with pytest.raises(OutOfTime):
        worker.run(time.monotonic() + 3, waits_with_a_child, tmp_path / "pids")
    pids = wait_for(tmp_path / "pids")
    assert until_gone(pids)
    # a time that is over is over before anything begins
    with pytest.raises(OutOfTime):
        worker.run(time.monotonic() - 1, os.getpid)


def press_in_main_thread() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.parametrize("how", [press_in_main_thread, _thread.interrupt_main])
def test_ctrl_c_ends_what_runs(worker: Worker, tmp_path: Path, how: Callable[[], None]) -> None:
    """Also where it came just before the waiting began, as `interrupt_main` does it: it ends no waiting."""
    worker.run(FOR_EVER, os.getpid)

    def press() -> None:
        wait_for(tmp_path / "pids")
        how()

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        worker.run(FOR_EVER, waits_with_a_child, tmp_path / "pids")
    presser.join()
    assert until_gone(wait_for(tmp_path / "pids"))


def test_where_the_parent_is_killed_the_process_and_its_children_end(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import math; from pathlib import Path; "
        "from waiting import waits_with_a_child; from vivace.acceleration.worker import Worker; "
        f"Worker().run(math.inf, waits_with_a_child, Path({str(tmp_path / 'pids')!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    pids = wait_for(tmp_path / "pids")
    assert all(map(is_running, pids))
    parent.kill()
    parent.wait()
    assert until_gone(pids)


def test_work_fits_by_the_longest_of_its_kind_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(60.0)
    # three seconds are for writing the result
    assert budget.seconds_left() == pytest.approx(57)
    assert Budget(10.0).seconds_left() == pytest.approx(9)
    assert Budget().seconds_left() == math.inf
    assert budget.fits("int8")
    with budget.measured("int8"):
        now[0] += 20
    with pytest.raises(VivaceError), budget.measured("fp32"):
        raise VivaceError("it broke")
    assert budget.fits("int8")
    now[0] += 18
    assert not budget.fits("int8")
    assert budget.fits("fp32")
    assert not budget.fits("fp32", seconds=19.5)
    assert budget.overrun() is None
    now[0] = 100 + 63.0
    assert budget.overrun() is None
    now[0] = 100 + 64.0
    assert budget.overrun() == "it took 64 s, and the time budget was 60 s"
