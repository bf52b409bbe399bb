"""Files are whole or absent."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from vivace.errors import RunFolderError
from vivace.files import FolderLock, atomic_file, atomic_folder, canonical_json, sha256_of


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
        "import sys, time; from pathlib import Path; from vivace.files import FolderLock;"
        f"lock = FolderLock(Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60)"
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
    # a file in the way: the tests may run as root, whom rights do not stop
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"can't be written: .* Choose another with --run"):
        FolderLock(tmp_path / "file" / "run")


def test_equal_values_have_equal_json_and_hashes(tmp_path: Path) -> None:
    assert canonical_json({"b": 1, "a": [2]}) == canonical_json({"a": [2], "b": 1})
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
