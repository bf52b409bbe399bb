"""Environments of peers: made once, made anew when their pins change, never over somebody's files. pip is a stub."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import environments as module
from environments import STAMP, EnvironmentFailed, ensure_environment, python_of


class FakeCalls:
    """In place of subprocess.run: makes the folder that `venv` would make, and ends as told where pip is called."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.pip_status = 0

    @property
    def num_installs(self) -> int:
        return sum("pip" in command for command in self.commands)

    def __call__(self, command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(list(command))
        if "venv" in command:
            place = Path(command[-1])
            place.mkdir(parents=True)
            (place / "pyvenv.cfg").touch()
            return subprocess.CompletedProcess(command, 0, stdout="")
        return subprocess.CompletedProcess(command, self.pip_status, stdout="ERROR: no space left")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> FakeCalls:
    fake = FakeCalls()
    monkeypatch.setattr(module.subprocess, "run", fake)
    return fake


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    folder = tmp_path / "requirements"
    folder.mkdir()
    (folder / "peer.txt").write_text("torch==2.15.0\n")
    return folder


def test_an_environment_is_installed_once(
    calls: FakeCalls, requirements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "environments"
    python = ensure_environment("peer", folder, requirements=requirements)
    assert python == folder / "peer" / "bin" / "python" == python_of("peer", folder)
    assert calls.commands[0] == [sys.executable, "-m", "venv", str(folder / "peer")]
    assert calls.commands[1][0] == str(python)
    assert calls.commands[1][-1] == str(requirements / "peer.txt")
    assert "installing torch==2.15.0" in capsys.readouterr().err
    ensure_environment("peer", folder, requirements=requirements)
    assert calls.num_installs == 1
    assert capsys.readouterr().err == ""


def test_changed_pins_make_it_anew(calls: FakeCalls, requirements: Path, tmp_path: Path) -> None:
    folder = tmp_path / "environments"
    ensure_environment("peer", folder, requirements=requirements)
    left = folder / "peer" / "of the old pins"
    left.touch()
    (requirements / "peer.txt").write_text("torch==2.16.0\n")
    ensure_environment("peer", folder, requirements=requirements)
    assert calls.num_installs == 2
    assert not left.exists()


def test_a_failed_installation_says_why_and_is_tried_again(
    calls: FakeCalls, requirements: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "environments"
    calls.pip_status = 1
    with pytest.raises(EnvironmentFailed, match=r"environment of peer could not be made.*(?s:.*)no space left"):
        ensure_environment("peer", folder, requirements=requirements)
    assert not (folder / "peer" / STAMP).exists()
    calls.pip_status = 0
    ensure_environment("peer", folder, requirements=requirements)
    assert calls.num_installs == 2


def test_a_folder_that_is_no_environment_is_left_alone(calls: FakeCalls, requirements: Path, tmp_path: Path) -> None:
    mine = tmp_path / "environments" / "peer" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(EnvironmentFailed, match="is no virtual environment and is in the way"):
        ensure_environment("peer", tmp_path / "environments", requirements=requirements)
    assert mine.exists()
    assert calls.commands == []


def test_an_unknown_peer_is_refused_with_those_that_are_known(requirements: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match=r"no requirements for 'pear'.*Known: peer\."):
        ensure_environment("pear", tmp_path, requirements=requirements)


def test_without_an_environment_the_benchmarks_own_python_runs() -> None:
    assert python_of(None) == Path(sys.executable)
