"""Temporary folders are private and removed after use; those of killed processes at the next start."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vivace.scratch import scratch_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_private_and_gone_after_the_block(temporary: Path) -> None:
    with scratch_folder("timing") as folder:
        (folder / "x").mkdir()
        (folder / "x" / "y").write_text("z")
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(temporary.iterdir()) == []
    with pytest.raises(RuntimeError), scratch_folder("timing"):
        raise RuntimeError
    assert list(temporary.iterdir()) == []


def test_it_may_be_renamed_in_the_block(temporary: Path) -> None:
    with scratch_folder("timing", temporary / "..") as folder:
        folder.rename(temporary / "kept")
    assert [path.name for path in temporary.iterdir()] == ["kept"]


HOLD = """
import sys
from pathlib import Path
from vivace.scratch import scratch_folder
with scratch_folder("timing", Path(sys.argv[1])) as folder:
    (folder / "x").touch()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_it_to_the_next_start_and_a_living_one_keeps_it(temporary: Path) -> None:
    kept = [
        temporary / name for name in (".vivace-timing.tmp", ".vivace-export.0123abcd.tmp", "vivace-timing-abcdefgh")
    ]
    for path in kept:
        path.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(temporary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        (held,) = set(temporary.iterdir()) - set(kept)
        with scratch_folder("timing"):
            assert (held / "x").exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (held / "x").exists()
    with scratch_folder("timing"):
        assert not held.exists()
    assert sorted(temporary.iterdir()) == sorted(kept)
