"""Locks are private, and are waited for as long as their holder works."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vivace import locks
from vivace.errors import RunFolderError
from vivace.locks import FolderLock, waiting_lock

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_SH)
print("held", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def held_by_another(path: Path) -> Iterator[int]:
    """The id of a process that has opened a file for reading and holds it while the block runs."""
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other.pid
        other.kill()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_lock_is_private(tmp_path: Path) -> None:
    with FolderLock(tmp_path), waiting_lock(tmp_path / ".x.lock", "x"):
        assert mode(tmp_path / ".lock") == mode(tmp_path / ".x.lock") == 0o600


def test_a_lock_that_others_could_open_is_made_private(tmp_path: Path) -> None:
    for name in (".lock", ".x.lock"):
        (tmp_path / name).write_text("4711")
        (tmp_path / name).chmod(0o666)
    with FolderLock(tmp_path), waiting_lock(tmp_path / ".x.lock", "x"):
        assert mode(tmp_path / ".lock") == mode(tmp_path / ".x.lock") == 0o600


def test_the_holder_of_a_run_folder_is_reported_and_not_who_wrote_last(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text("4711")
    with held_by_another(lock) as pid, pytest.raises(RunFolderError, match=rf"\(process {pid}\)\. Wait for it or end"):
        FolderLock(tmp_path)


def test_an_idle_holder_is_not_waited_for_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "MAX_SILENCE_SECONDS", 0.3)
    lock = tmp_path / ".x.lock"
    lock.write_text("4711")
    message = r"process {} holds its lock \.x\.lock and has done nothing for 0 s: end it if it hangs"
    with (
        held_by_another(lock) as pid,
        pytest.raises(TimeoutError, match=message.format(pid)),
        waiting_lock(lock, "x"),
    ):
        pass
    # and its descriptor is not left open
    with waiting_lock(lock, "x"):
        pass


def test_a_working_holder_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder works four times as long as an idle one would be waited for."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "MAX_SILENCE_SECONDS", 1.0)
    lock, took = tmp_path / ".x.lock", []

    def wait() -> None:
        with contextlib.suppress(TimeoutError), waiting_lock(lock, "x"):
            took.append(True)

    waiting = threading.Thread(target=wait)
    with waiting_lock(lock, "x"):
        waiting.start()
        ends = time.monotonic() + 4
        while time.monotonic() < ends:
            sum(range(1000))
    waiting.join()
    assert took == [True]


def test_a_sleeping_holder_writes_no_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(locks, "WORKED_SECONDS", 1e6)
    with waiting_lock(tmp_path / ".x.lock", "x"):
        os.utime(tmp_path / ".x.lock", (1, 1))
        time.sleep(0.2)
        assert (tmp_path / ".x.lock").stat().st_mtime == 1


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("flock") is None, reason="only root may act as another user")
def test_another_user_who_may_only_read_cant_hold_it() -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    command = ["flock", "--shared", "--nonblock", folder / ".x.lock", "true"]
    try:
        for made_by_vivace in (False, True):
            if made_by_vivace:
                with waiting_lock(folder / ".x.lock", "x"):
                    pass
            else:
                (folder / ".x.lock").touch(mode=0o644)
            done = subprocess.run(command, user=65534, cwd="/", capture_output=True, check=False)
            assert (b"Permission denied" in done.stderr) is made_by_vivace
    finally:
        shutil.rmtree(folder)


def test_locking_fails_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with waiting_lock(tmp_path / ".x.lock", "x"):
        assert not [thread for thread in threading.enumerate() if thread.name == locks.BEATING]
