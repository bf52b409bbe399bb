"""Modules that other systems lack are blocked in a child process: daily work must continue without them."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vivace import systems
from vivace.acceleration.accelerate import accelerate
from vivace.data.caching.stored import StoredImages
from vivace.data.layouts.archives import unpack
from vivace.errors import ArchiveError, ConfigError, RunFolderError
from vivace.hardware import device_name, select_device, supported_precisions
from vivace.holes import SPARSE_BYTES, check_solid
from vivace.locks import FolderLock, waiting_lock
from vivace.systems import files as system_files
from vivace.systems import locking, processes
from vivace.trust import doubt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="plays another system on Linux")

# installed as sitecustomize.py, so that it runs at the start of each Python, including those that vivace starts
WITHOUT = """
import builtins, errno, io, os, shutil, sys, tempfile
from pathlib import Path

for name in ("fcntl", "resource", "msvcrt"):
    sys.modules.pop(name, None)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "msvcrt"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())

# fds and maps of this process, for the rules below
listdir, readlink, plain_open = os.listdir, os.readlink, io.open

def opened():
    found = []
    for number in listdir("/proc/self/fd"):
        try:
            found.append(readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass
    with plain_open("/proc/self/maps") as maps:
        found += [line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")]
    return found

# open files, and folders that hold one, can't be renamed or removed
def guarded(function):
    def guard(*paths, **options):
        for path in paths:
            place = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))
            if any(file == place or file.startswith(place + os.sep) for file in opened()):
                raise PermissionError(errno.EACCES, "open in this process", str(path))
        return function(*paths, **options)
    return guard
shutil._use_fd_functions = False
tempfile.TemporaryFile = tempfile.NamedTemporaryFile
for name in ("rename", "replace", "unlink", "remove", "rmdir"):
    setattr(os, name, guarded(getattr(os, name)))

register_at_fork = os.register_at_fork
# a folder can't be opened
os_open = os.open
def no_folders(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "a folder", str(path))
    return os_open(path, *arguments, **options)
os.open = no_folders

for name in (
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "SEEK_DATA", "SEEK_HOLE"),
    *("fchmod", "fork", "geteuid", "getuid", "getpgid", "getpgrp", "killpg", "major", "minor"),
    *("posix_fallocate", "pread", "preadv", "pwrite", "register_at_fork"),
    *("sched_getaffinity", "sched_setaffinity", "sync", "sysconf"),
):
    if hasattr(os, name):
        delattr(os, name)

# there is no /proc
def without_proc(function):
    def absent(path, *arguments, **options):
        if str(path).startswith(("/proc", "/sys")):
            if function.__name__ == "exists":
                return False
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return function(path, *arguments, **options)
    return absent
for name in ("exists", "open", "read_text", "read_bytes"):
    setattr(Path, name, without_proc(getattr(Path, name)))

# torch asks whether it is on Windows rather than for this
import vivace.cpus, vivace.systems
os.register_at_fork = register_at_fork
"""
DECODE = """
import sys
from pathlib import Path
import numpy as np
from vivace.data import workers
from vivace.data.caching.files import allocate
from vivace.data.preprocess import Preprocess
from vivace.hardware import available_memory_bytes, num_cpus, peak_memory_bytes

workers.MIN_FILES_FOR_PROCESSES = 1
paths, pixels = [sys.argv[1]] * 40, Path(sys.argv[2])
preprocess = Preprocess(size=16, store_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
del_me = allocate(pixels, (40, 16, 16, 3))
del del_me
found = workers.decode_files(paths, preprocess, pixels, num_workers=2)
assert not found.problems, found.problems
assert len(set(found.pixel_digests)) == 1
assert np.load(pixels).any(axis=(1, 2, 3)).all()
assert peak_memory_bytes() is None
assert available_memory_bytes() == 0
assert num_cpus() >= 1
"""


# commands one after the other, and the answer of each
COMMANDS = """
import contextlib, io, json, sys
from vivace.cli import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = main([*words, "--json"])
    assert status == 0, (words, status)
    print(said.getvalue().splitlines()[-1])
"""


def _environment(folder: Path, without: bool) -> dict[str, str]:
    (folder / "site").mkdir(parents=True)
    (folder / "temporary").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(WITHOUT if without else "", "utf-8")
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
        "PYTHONPATH": str(folder / "site"),
        "TMPDIR": str(folder / "temporary"),
        "VIVACE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        # as on Windows
        "USERNAME": "somebody",
    }


def _run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=850, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout


def _vivace(environment: dict[str, str], *commands: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _run(environment, "-c", COMMANDS, json.dumps(commands)).splitlines()]


def _train(folder: Path, *arguments: str) -> tuple[str, ...]:
    # without /proc the CPU's features are unknown, so the two would choose different precisions
    fp32 = ("--precision", "fp32", "--set", "optimizer.options.ns_dtype=fp32")
    plain = ("--run", str(folder / "run"), "--device", "cpu", "--seed", "1", "--quiet")
    return ("train", "digits", *plain, *fp32, *arguments)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_daily_work_continues_without_system_specific_modules(tmp_path: Path) -> None:
    once = ("--epochs", "1", "--tune", "off")
    (plain,) = _vivace(_environment(tmp_path / "plain", False), _train(tmp_path / "plain", *once))
    folder = tmp_path / "bare"
    bare = _environment(folder, True)
    image, bundle = str(tmp_path / "a.png"), str(folder / "run" / "bundle")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)

    found, evaluated, predicted, exported = _vivace(
        bare,
        _train(folder, *once),
        ("evaluate", bundle, "digits", "--device", "cpu"),
        ("predict", bundle, image, "--device", "cpu"),
        ("export", bundle, "--to", "onnx", "--out", str(folder / "graph"), "digits"),
    )
    assert (found["test_top1"], found["val_top1"]) == (plain["test_top1"], plain["val_top1"])
    assert evaluated["top1"] == plain["test_top1"]
    (prediction,) = predicted["predictions"]
    assert prediction["label"] in "0123456789"
    assert exported["parity"]["top1_agreement"] == 1.0
    # as anybody would, in another process
    (resumed,) = _vivace(bare, _train(folder, "--epochs", "2", "--resume"))
    assert resumed["epochs"] == 2.0
    assert resumed["test_top1"] > 0.5
    _run(bare, "-c", DECODE, image, str(tmp_path / "pixels.npy"))
    # no locks and no temporary files are left
    assert [path.name for path in (folder / "temporary").glob("vivace-*/*")] == []
    assert [str(path) for path in folder.rglob("*.tmp")] == []


class Windows:
    """msvcrt.locking of Windows: one descriptor holds a byte of a file until it releases it or is closed."""

    LK_UNLCK, LK_NBLCK = 0, 2

    def __init__(self) -> None:
        self.locked: dict[tuple[int, int], int] = {}

    def locking(self, descriptor: int, mode: int, num_bytes: int) -> None:
        assert num_bytes == 1
        place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        if mode == self.LK_UNLCK:
            if self.locked.get(place) != descriptor:
                raise PermissionError(errno.EACCES, "not locked")
            del self.locked[place]
        elif place in self.locked:
            raise PermissionError(errno.EACCES, "locked")
        else:
            self.locked[place] = descriptor


@pytest.fixture(params=["windows", "nothing"])
def without_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setattr(locking, "fcntl", None)
    monkeypatch.setattr(locking, "msvcrt", Windows() if request.param == "windows" else None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    locking._locks_folder.cache_clear()
    yield tmp_path / "vivace-locks"
    locking._locks_folder.cache_clear()


def test_a_lock_without_flock_excludes_others_until_it_is_closed(without_flock: Path, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_bytes(b"123")
    one, other = (systems.open_plain(path, os.O_RDWR) for _ in range(2))
    systems.lock(one)
    with pytest.raises(BlockingIOError):
        systems.lock(other)
    assert os.read(one, 10) == b"123"
    waiting = threading.Thread(target=systems.lock, args=(other,), kwargs={"wait": True})
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    systems.close(one)
    waiting.join(60)
    assert not waiting.is_alive()
    systems.close(other)
    systems.close(systems.close_if_immovable(-1))
    assert not without_flock.exists() or not list(without_flock.iterdir())


def test_a_run_folder_is_one_process_s_without_flock(without_flock: Path, tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run") as held:
        held.write(begun=True)
        with pytest.raises(RunFolderError, match="another run of this process"):
            FolderLock(tmp_path / "run")
    FolderLock(tmp_path / "run").release()


def test_threads_take_turns_and_beat_without_flock(
    without_flock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fchmod", "major", "minor", "pread", "pwrite"):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr("vivace.locks.BEAT_SECONDS", 0.01)
    monkeypatch.setattr("vivace.locks.WORKED_SECONDS", -1.0)
    inside, most = [], []

    def work(_: int) -> None:
        with waiting_lock(tmp_path / ".x.lock", "x"):
            inside.append(1)
            time.sleep(0.05)
            most.append(len(inside))
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert most == [1] * 4
    assert (tmp_path / ".x.lock").read_text() == str(os.getpid())


def test_a_large_file_is_accepted_where_holes_are_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "x").open("w+b") as file:
        file.truncate(SPARSE_BYTES * 2)
        with pytest.raises(OSError, match="holes"):
            check_solid(file.fileno())
        monkeypatch.delattr(os, "SEEK_DATA")
        check_solid(file.fileno())


def test_the_lock_of_a_dead_process_is_taken_over_that_of_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "fcntl", None)
    monkeypatch.setattr(locking, "msvcrt", None)
    monkeypatch.setattr(locking, "_locks_folder", lambda: tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "file").touch()
    descriptor = systems.open_plain(tmp_path / "file")
    facts = os.fstat(descriptor)
    said = tmp_path / f"{facts.st_dev}-{facts.st_ino}"
    said.write_text(str(os.getppid()))
    with pytest.raises(BlockingIOError):
        systems.lock(descriptor)
    said.write_text(str(dead.pid))
    systems.lock(descriptor)
    assert said.read_text() == str(os.getpid())
    systems.close(descriptor)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "possible"),
    [
        ("hf-hub:timm-x", "hf-hub-timm-x"),
        ("aux", "-aux"),
        ("CON.npy", "-CON.npy"),
        ("console", "console"),
        ("dots. .", "dots"),
        ("...", "-"),
        ("a\tb", "a-b"),
        ("äöü 学 plain.npy", "äöü 学 plain.npy"),
    ],
)
def test_names_are_changed_where_windows_forbids_them_and_nowhere_else(
    name: str, possible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert systems.possible_name(name) == name
    monkeypatch.setattr(system_files, "OPEN_FILES_MOVE", False)
    assert systems.possible_name(name) == possible


@pytest.mark.parametrize("name", ["C:evil.png", "photo.png:hidden", "train/aux/1.png", "train/nul.png"])
def test_an_archive_s_names_that_lead_elsewhere_on_windows_are_refused_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    unpack(tmp_path / "a.zip", tmp_path / "here")
    assert (tmp_path / "here" / name).is_file()
    monkeypatch.setattr(system_files, "OPEN_FILES_MOVE", False)
    with pytest.raises(ArchiveError, match="a file name that is invalid on this system"):
        unpack(tmp_path / "a.zip", tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())


def test_made_up_permissions_of_windows_raise_no_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: Any = SimpleNamespace(st_uid=4711, st_mode=0o40777)
    assert systems.is_foreign(facts)
    assert systems.mode_of(facts) == 0o40777
    for name in ("getuid", "geteuid"):
        monkeypatch.delattr(os, name)
    assert not systems.is_foreign(facts)
    assert systems.mode_of(facts) == 0o40700
    assert doubt(tmp_path) is None
    (tmp_path / "link").symlink_to(tmp_path)
    assert "symbolic link" in str(doubt(tmp_path / "link"))


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_converted_from_the_unit_of_the_system(
    platform: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=3000))
    monkeypatch.setattr(processes, "resource", told)
    monkeypatch.setattr(sys, "platform", platform)
    assert systems.peak_memory_bytes() == 3000 * unit


def test_space_is_allocated_without_changes_where_the_system_cant_reserve_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    path = tmp_path / "sparse"
    with path.open("w+b") as file:
        file.write(b"header")
        file.truncate(3 * 2**20 + 5)
        before = path.stat().st_blocks
        systems.reserve(file, 3 * 2**20 + 5)
        os.fsync(file.fileno())
    assert path.read_bytes() == b"header".ljust(3 * 2**20 + 5, b"\0")
    assert path.stat().st_blocks > before


def test_threads_read_their_own_bytes_where_reading_moves_the_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pread", "preadv", "pwrite"):
        monkeypatch.delattr(os, name)
    images = np.random.default_rng(0).integers(0, 255, (64, 5, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    stored = StoredImages(tmp_path / "images.npy")
    with ThreadPoolExecutor(8) as pool:
        rows = np.random.default_rng(1).integers(0, 64, 2000).tolist()
        for row, found in zip(rows, pool.map(stored.__getitem__, rows), strict=True):
            assert np.array_equal(found, images[row])


def test_apple_s_gpu_is_a_device_and_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Apple's GPU"):
        select_device("mps")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    device = select_device("mps")
    assert device.type == "mps"
    assert supported_precisions(device) == ("fp32",)
    assert "Apple GPU" in device_name(device)


def test_accelerate_says_that_it_needs_another_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vivace.acceleration.accelerate.ENDS_GROUPS", False)
    with pytest.raises(ConfigError, match="needs Linux or macOS"):
        accelerate(tmp_path / "bundle", "digits", out=tmp_path / "out")


def test_system_differences_are_in_one_package_only() -> None:
    lacking = re.compile(
        r"\bimport (fcntl|resource|msvcrt)\b|signal\.SIG(KILL|STOP|HUP)|\bos\.(O_(CLOEXEC|NOFOLLOW|DIRECTORY)|gete?uid"
        r"|SEEK_(DATA|HOLE)|fchmod|major|minor|p(read|write)v?|killpg|posix_fallocate|fork|sync|sysconf)\b"
    )
    root = Path(systems.__file__).parent.parent
    found = [
        f"{path}: {line.strip()}"
        for path in root.rglob("*.py")
        if path.parent.name != "systems" and "templates" not in path.parts
        for line in path.read_text("utf-8").splitlines()
        if lacking.search(line)
    ]
    assert not found
