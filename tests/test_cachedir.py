"""The cache folder: its location or a temporary substitute, exclusive building, and removal of leftovers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from caches import remove_cache
from vivace import locks
from vivace.cachedir import building, clear_leftovers, default_cache_dir, warn_if_shared
from vivace.data.caching.cache import open_cache
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source


@pytest.fixture
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable that names a place, and an empty folder for temporary files."""
    for name in ("VIVACE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.mark.usefixtures("_nowhere")
def test_the_first_writable_folder_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "vivace"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "vivace"
    monkeypatch.setenv("VIVACE_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"


@pytest.mark.usefixtures("_nowhere")
def test_without_a_home_the_cache_is_a_private_temporary_folder(tmp_path: Path) -> None:
    place = default_cache_dir()
    assert place == tmp_path / "tmp" / f"vivace-{os.getuid()}"
    assert place.stat().st_mode & 0o777 == 0o700
    assert default_cache_dir() == place


@pytest.mark.usefixtures("_nowhere")
def test_a_home_that_cant_be_written_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # a file in place of the folder, because permissions do not stop root
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert default_cache_dir() == tmp_path / "tmp" / f"vivace-{os.getuid()}"


@pytest.mark.usefixtures("_nowhere")
def test_a_home_on_a_read_only_disk_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    (tmp_path / ".cache" / "vivace").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert default_cache_dir() == tmp_path / "tmp" / f"vivace-{os.getuid()}"


@pytest.mark.usefixtures("_nowhere")
def test_a_temporary_folder_made_by_another_user_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "tmp" / f"vivace-{os.getuid()}").symlink_to(tmp_path / "theirs")
    place = default_cache_dir()
    assert place.parent == tmp_path / "tmp"
    assert not place.is_symlink()


def test_building_waits_for_another_process_and_not_for_one_that_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "x-1"
    code = (
        "import sys, time; from pathlib import Path; from vivace.cachedir import building\n"
        "with building(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    waiting = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert waiting.stdout is not None
    time.sleep(0.4)
    assert waiting.poll() is None
    other.kill()
    assert waiting.stdout.readline() == "held\n"
    waiting.kill()
    for process in (other, waiting):
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_cache_is_built_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with building(tmp_path / "images" / "x-1"):
        assert (tmp_path / "images").is_dir()


KILLED = """
import os, signal, sys
from pathlib import Path
from vivace.data.layouts import archives
from vivace.data.sources import open_source
copy, count = archives._copy, 0
def dying(*arguments):
    global count
    count += 1
    copy(*arguments)
    if count == 5:
        if sys.argv[2] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        print("unpacking", flush=True)
        sys.stdin.read()
archives._copy = dying
open_source(sys.argv[1])
"""


def test_an_incomplete_extraction_is_removed_when_other_data_is_opened(
    make_folder: Callable[..., Path], own_cache: Path, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", make_folder())
    command = [sys.executable, "-c", KILLED, archive]
    killed = subprocess.run([*command, "killed"], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (own_cache / "archives").iterdir()
    assert len(list(left.rglob("*.png"))) == 5
    # never files with other names
    users = [own_cache / "archives" / name for name in (".mine.tmp", "packed.0123abcd.tmp", ".x.0123ABCD.tmp")]
    for path in users:
        path.mkdir()
    with subprocess.Popen([*command, "alive"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as alive:
        assert alive.stdout is not None
        assert alive.stdout.readline() == "unpacking\n"
        open_source(make_folder("others"))
        assert not left.exists()
        (unpacking,) = set((own_cache / "archives").iterdir()) - set(users)
        assert len(list(unpacking.rglob("*.png"))) == 5
        alive.communicate("go on")
    assert alive.returncode == 0
    assert all(path.is_dir() for path in users)


@pytest.mark.parametrize("place", ["images", "archives", "downloads", "kernels", "aoti", "exported"])
def test_leftovers_of_killed_processes_are_removed_from_the_cache(tmp_path: Path, place: str) -> None:
    left = tmp_path / place / ".something.0123abcd.tmp"
    left.mkdir(parents=True)
    (left / "half").touch()
    (tmp_path / place / "whole").mkdir()
    clear_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / place).iterdir()] == ["whole"]
    clear_leftovers(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["link", "pipe", "text"])
def test_a_lock_that_vivace_did_not_write_is_refused(tmp_path: Path, kind: str) -> None:
    folder, precious = tmp_path / "images" / "a-0123456789", tmp_path / "thesis.txt"
    precious.write_text("my thesis")
    folder.parent.mkdir()
    lock = folder.parent / ".a-0123456789.lock"
    if kind == "link":
        lock.symlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.write_text("mine")
    problem = r"its lock \.a-0123456789\.lock (is a link|is not a regular file|holds something)"
    with pytest.raises(OSError, match=problem):  # noqa: SIM117
        with building(folder):
            pass
    assert precious.read_text() == "my thesis"
    assert kind != "text" or lock.read_text() == "mine"


def test_a_process_that_waits_for_a_cache_names_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images" / "a-0123456789"
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.0)
    waited = threading.Event()

    def wait() -> None:
        with building(folder):
            waited.set()

    waiting = threading.Thread(target=wait)
    with building(folder):
        waiting.start()
        said = ""
        while "waiting" not in said:
            said += capsys.readouterr().err
            time.sleep(0.01)
        assert not waited.is_set()
    waiting.join()
    said += capsys.readouterr().err
    assert said == f"warning: waiting for process {os.getpid()}, which is building {folder}\n"


@pytest.fixture
def entered_by_all() -> Iterator[Path]:
    """A folder that others may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    remove_cache(path)


def test_a_cache_that_others_may_write_to_is_reported_once(
    entered_by_all: Path, make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, shared = open_source(make_folder()), entered_by_all / "cache"
    preprocess = Preprocess(size=8, store_size=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    folder = open_cache(source, preprocess, cache_dir=shared).folder
    assert "another user" not in capsys.readouterr().err
    shared.chmod(0o775)
    for _ in range(2):
        open_cache(source, preprocess, cache_dir=shared)
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "another user" in line]
    assert told == (
        f"warning: another user could have changed the images and labels in {folder}, which are used: others "
        f"may write to {shared} (mode 0775). Remove write permission for others (chmod -R go-w), or set "
        "VIVACE_CACHE to a private folder."
    )


@pytest.mark.parametrize(
    ("cache", "images", "file", "told"),
    [
        (0o755, 0o755, 0o644, False),
        (0o700, 0o775, 0o664, False),
        (0o755, 0o775, 0o644, True),
        (0o755, 0o755, 0o664, True),
        (0o777, 0o755, 0o644, True),
        (0o1777, 0o755, 0o644, False),
    ],
)
def test_others_may_read_a_cache_and_not_write(
    entered_by_all: Path, capsys: pytest.CaptureFixture[str], cache: int, images: int, file: int, told: bool
) -> None:
    folder = entered_by_all / "cache" / "images"
    folder.mkdir(parents=True)
    (folder / "cache.json").touch()
    for place, mode in ((folder.parent, cache), (folder, images), (folder / "cache.json", file)):
        place.chmod(mode)
    warn_if_shared(folder)
    assert ("another user could have changed" in capsys.readouterr().err) == told
