"""Parallel decoding gives the same pixels as sequential decoding, and leaves nothing running or hanging if it fails."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vivace.data import workers
from vivace.data.caching.files import allocate
from vivace.data.decoding import decode
from vivace.data.preprocess import Preprocess
from vivace.data.workers import Decoded, decode_files
from vivace.errors import DataError

PREPROCESS = Preprocess(size=16, store_size=16)
Start = Callable[[], tuple[list[str], Path]]


@pytest.fixture
def start(make_folder: Callable[..., Path], tmp_path: Path) -> Start:
    """start() → 48 paths, some of them bad, and the .npy file for their pixels."""

    def make() -> tuple[list[str], Path]:
        root = make_folder(per_class=16)
        (root / "red" / "003.png").write_bytes(b"")
        (root / "green" / "007.png").unlink()
        folders = ("blue", "green", "red")
        paths = [str(root / folder / f"{index:03d}.png") for folder in folders for index in range(16)]
        allocate(tmp_path / "pixels.npy", (48, 16, 16, 3))
        return paths, tmp_path / "pixels.npy"

    return make


@pytest.fixture
def _processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MIN_FILES_FOR_PROCESSES", 1)
    # more blocks than may be queued at the workers
    monkeypatch.setattr(workers, "MAX_BLOCK", 4)


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def check(result: Decoded, paths: list[str], pixels: Path) -> None:
    """Compare with decoding sequentially."""
    images = np.load(pixels)
    assert {index: problem for index, (problem, _) in result.problems.items()} == {23: "unreadable", 35: "empty"}
    for index, path in enumerate(paths):
        if index in result.problems:
            assert path in result.problems[index][1]
            assert not images[index].any()
        else:
            np.testing.assert_array_equal(images[index], PREPROCESS.load(path))
            assert result.digests[index] == hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_threads_give_what_one_by_one_gives(start: Start, num_workers: int) -> None:
    paths, pixels = start()
    seen: list[int] = []
    check(decode_files(paths, PREPROCESS, pixels, num_workers=num_workers, progress=seen.append), paths, pixels)
    assert sum(seen) == len(paths)


@pytest.mark.usefixtures("_processes")
def test_processes_give_what_one_by_one_gives_and_end(start: Start) -> None:
    paths, pixels = start()
    seen: list[int] = []
    before = children()
    check(decode_files(paths, PREPROCESS, pixels, num_workers=3, progress=seen.append), paths, pixels)
    assert sum(seen) == len(paths)
    assert len(seen) == 12
    assert children() == before


@pytest.mark.usefixtures("_processes")
def test_a_script_without_a_main_guard_and_with_a_numpy_of_its_own_is_not_run_twice(
    start: Start, tmp_path: Path
) -> None:
    paths, pixels = start()
    place = tmp_path / "project"
    place.mkdir()
    (place / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    (place / "script.py").write_text(
        "import sys\n"
        "sys.path.remove(sys.path[0])\n"
        "print('once')\n"
        "from pathlib import Path\n"
        "from vivace.data import workers\n"
        "from vivace.data.preprocess import Preprocess\n"
        "workers.MIN_FILES_FOR_PROCESSES = 1\n"
        f"paths, pixels = {paths!r}, Path({os.fspath(pixels)!r})\n"
        "workers.decode_files(paths, Preprocess(size=16, store_size=16), pixels, num_workers=2)\n"
    )
    ran = subprocess.run([sys.executable, "script.py"], cwd=place, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "once\n", "")
    assert np.load(pixels)[0].any()


def test_a_worker_imports_no_torch() -> None:
    code = "import sys, vivace.data.workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("_processes")
def test_a_killed_worker_is_reported_and_the_others_end(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, pixels = start()
    before = children()
    original = workers._run_processes

    def kill_one(started: list[subprocess.Popen[str]], *rest: object) -> None:
        os.kill(started[0].pid, signal.SIGKILL)
        original(started, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "_run_processes", kill_one)
    with pytest.raises(DataError, match=r"a decoding worker died \(killed by SIGKILL\)\. If memory is short"):
        decode_files(paths, PREPROCESS, pixels, num_workers=2)
    assert children() == before


@pytest.mark.usefixtures("_processes")
def test_ctrl_c_leaves_no_workers(start: Start) -> None:
    paths, pixels = start()
    before = children()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_files(paths, PREPROCESS, pixels, num_workers=2, progress=interrupt)
    assert children() == before


PARENT = """
import sys
from pathlib import Path
from vivace.data import workers
from vivace.data.preprocess import Preprocess
started = workers._start_children(2, Preprocess(size=16, store_size=16), Path(sys.argv[1]))
for child in started:
    child.stdin.write('[0, ["/dev/null"]]\\n')
    child.stdin.flush()
    child.stdout.readline()
print(*(child.pid for child in started), flush=True)
sys.stdin.read()
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_workers_die_with_a_killed_parent(start: Start) -> None:
    _, pixels = start()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(pixels)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert not any(gone(pid) for pid in pids)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 200
    while not all(gone(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert all(gone(pid) for pid in pids)
    parent.stdin.close()
    parent.stdout.close()


def test_a_worker_exits_in_the_middle_of_a_block_if_its_parent_dies(tmp_path: Path) -> None:
    allocate(tmp_path / "pixels.npy", (1, 16, 16, 3))
    (child,) = workers._start_children(1, PREPROCESS, tmp_path / "pixels.npy")
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write('[0, ["/nowhere"]]\n')
    child.stdin.flush()
    assert "unreadable" in child.stdout.readline()
    # a million missing files, which would take it several seconds
    child.stdin.write("[0, [" + ", ".join(['"/nowhere"'] * 1_000_000) + "]]\n")
    child.stdin.close()
    assert child.wait(timeout=200) == 0
    assert child.stdout.read() == "", "it has left before it answered"
    child.stdout.close()


@pytest.mark.usefixtures("_processes")
def test_if_no_process_can_be_started_threads_are_used(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, pixels = start()

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    check(decode_files(paths, PREPROCESS, pixels, num_workers=2), paths, pixels)


def test_an_image_that_does_not_fit_in_memory_is_not_quarantined(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, pixels = start()

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode, "open_picture", refuse)
    with pytest.raises(DataError, match=r"not enough memory to decode .*\.png\. Free some"):
        decode_files(paths, PREPROCESS, pixels)
