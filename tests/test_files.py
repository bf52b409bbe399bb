"""Files are written completely or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vivace import files
from vivace.errors import RunFolderError
from vivace.files import atomic_file, atomic_folder, canonical_json, remove_leftovers, sha256_of
from vivace.locks import FolderLock


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"), atomic_file(path) as file:  # noqa: PT012
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with atomic_folder(path) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(path) as folder:  # noqa: PT012
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (path / "a").read_text() == "old"
    with atomic_folder(path) as folder:
        (folder / "b").write_text("new")
    assert [file.name for file in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_locked_against_another_process_and_free_after_its_death(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from vivace.locks import FolderLock;"
        f"lock = FolderLock(Path({str(tmp_path)!r})); lock.write(begun=True); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=rf"another run is using the folder: .* \(process {other.pid}\)"):
            FolderLock(tmp_path)
        other.kill()
        other.wait()
    with FolderLock(tmp_path):
        pass


def test_a_folder_that_cant_be_written_is_refused(tmp_path: Path) -> None:
    # a file in place of the folder, because permissions do not stop root
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"can't be written: .* Choose another by `run`"):
        FolderLock(tmp_path / "file" / "run")


def test_equal_values_have_equal_json_and_hashes(tmp_path: Path) -> None:
    assert canonical_json({"b": 1, "a": [2]}) == canonical_json({"a": [2], "b": 1})
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


WRITE = """
import os, signal, sys, time
from pathlib import Path
from vivace import files
path = Path(sys.argv[1])
with (files.atomic_folder if sys.argv[2] == "folder" else files.atomic_file)(path) as made:
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-c", WRITE, str(tmp_path / "new"), kind]
    (tmp_path / ".mine.tmp").write_text("no leftover of ours")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert remove_leftovers(tmp_path) == ()
        left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".new.")]
        assert len(left) == 1
        writer.kill()
        writer.wait()
    assert remove_leftovers(tmp_path, "other") == ()
    assert remove_leftovers(tmp_path) == (left[0],)
    assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]
    assert remove_leftovers(tmp_path / "not there") == ()


def test_writing_a_folder_again_removes_what_a_killed_try_left(tmp_path: Path) -> None:
    left = tmp_path / ".bundle.0123abcd.tmp"
    left.mkdir()
    (left / "half").write_text("")
    with atomic_folder(tmp_path / "bundle") as folder:
        (folder / "a").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


KILLED = """
import os, signal, sys
from pathlib import Path
from vivace import files
if sys.argv[2] == "two steps":
    files.systems.exchange = lambda one, other: False
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
files._rename_or_undo = kill
with files.atomic_folder(Path(sys.argv[1])) as made:
    (made / "a").write_text("new")
"""


def test_a_process_killed_while_it_replaces_a_folder_loses_neither(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "a").write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(path), "one step"], check=True)
    assert (path / "a").read_text() == "new"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path), "two steps"], check=False).returncode == -9
    assert not path.exists()
    # the next start restores the name of the folder that was set aside
    assert len(remove_leftovers(tmp_path)) == 2
    assert (path / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_what_may_not_be_replaced_is_left_even_if_it_appears_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool
) -> None:
    if not in_one_step:
        monkeypatch.setattr(files.systems, "exchange", lambda one, other: False)
    path, seen = tmp_path / "bundle", []
    path.mkdir()

    def check(folder: Path) -> None:
        seen.append(folder)
        if len(seen) == 2:
            (folder / "thesis").write_text("work")
            raise ValueError

    with pytest.raises(ValueError), atomic_folder(path, check=check) as folder:  # noqa: PT011
        (folder / "a").write_text("new")
    assert [file.name for file in path.iterdir()] == ["thesis"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_no_files_place_and_a_file_no_folders(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    for path in (file, tmp_path / "link"):
        with pytest.raises(NotADirectoryError), atomic_folder(path):
            pass
    with pytest.raises(IsADirectoryError), atomic_file(folder):
        pass
    assert file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]


def test_parents_are_made_and_removed_again_if_nothing_came_of_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a" / "b" / "file"):
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a" / "b" / "folder"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_file(tmp_path / "a" / "b" / ("n" * 250)) as file:
        file.write(b"a name as long as a file system takes")
    assert [len(path.name) for path in (tmp_path / "a" / "b").iterdir()] == [250]


def test_what_is_made_by_many_at_once_under_one_name_is_there_for_each(tmp_path: Path) -> None:
    failures = []
    for attempt in range(40):
        # nothing exists yet: each process may create the parents and remove what looks like a leftover
        path = tmp_path / str(attempt) / "above" / "made"
        together = threading.Barrier(4)

        def make(path: Path = path, together: threading.Barrier = together) -> None:
            together.wait(60)
            try:
                with atomic_folder(path, sync=False) as temporary:
                    (temporary / "x").write_text("x")
            except OSError as error:
                failures.append(error)

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found.name for found in path.parent.iterdir()] == ["made"]
    assert failures == []
