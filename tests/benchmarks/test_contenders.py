"""Contenders: every row can be started, and what a peer prints is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from protocol import Clock, looks_folder

from contenders import CONTENDERS, PEERS
from environments import REQUIREMENTS

PYTHON = Path("/environment/bin/python")
WITH_ENVIRONMENT = [name for name, contender in CONTENDERS.items() if contender.environment]


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_runs_a_script_that_exists(name: str) -> None:
    command = CONTENDERS[name].command(PYTHON, Path("data"), Path("folder"))
    assert command[0] == str(PYTHON)
    assert "data" in command
    assert "folder" in command
    assert "--json" in command
    assert command[1:3] == ["-m", "vivace"] or Path(command[1]).is_file()


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_is_given_its_seed(name: str) -> None:
    contender = CONTENDERS[name]
    command = contender.command(PYTHON, Path("data"), Path("folder"))
    wanted = ["--set", "seed=3"] if "vivace" in command else ["--seed", "3"]
    assert contender.seed(3) == wanted
    if "vivace" not in command and contender.environment is None:
        assert '"--seed"' in Path(command[1]).read_text()


@pytest.mark.parametrize("name", WITH_ENVIRONMENT)
def test_every_environment_is_pinned_exactly(name: str) -> None:
    lines = (REQUIREMENTS / f"{CONTENDERS[name].environment}.txt").read_text().splitlines()
    assert lines
    assert all("==" in line for line in lines)


@pytest.mark.parametrize("name", WITH_ENVIRONMENT)
def test_no_script_hides_the_package_that_it_imports(name: str) -> None:
    pins = (REQUIREMENTS / f"{CONTENDERS[name].environment}.txt").read_text().splitlines()
    scripts = {path.stem for path in PEERS.glob("*.py")}
    assert scripts.isdisjoint(line.partition("==")[0] for line in pins)


@pytest.mark.parametrize("name", WITH_ENVIRONMENT)
def test_the_last_line_of_a_peer_is_read_back(name: str) -> None:
    last = {
        "top1": 0.5,
        "curve": [[10.0, 0.6], [20.0, 0.5]],
        "train_seconds": 21.0,
        "look_seconds": 3.0,
        "total_seconds": 30.0,
        "versions": {"torch": "2.15.0"},
    }
    result = CONTENDERS[name].read(last, Path("folder"), 31.0)
    assert (result.top1, result.best_top1) == (0.5, 0.6)
    assert (result.train_seconds, result.total_seconds) == (21.0, 31.0)
    assert result.curve == ((10.0, 0.6), (20.0, 0.5))
    assert result.details["look_seconds"] == 3.0


def test_a_clock_keeps_looks_out_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 10.0, 13.0, 23.0, 25.0])
    monkeypatch.setattr("protocol.time.perf_counter", lambda: next(times))
    clock = Clock(target=0.7)
    clock.start()
    for top1 in (0.6, 0.7):
        clock.begin_look()
        assert clock.looking
        clock.end_look(top1)
        assert clock.reached == (top1 == 0.7)
    assert clock.curve == [(10.0, 0.6), (20.0, 0.7)]
    assert (clock.train_seconds, clock.look_seconds) == (20.0, 5.0)


def test_looks_are_at_val_and_at_test_only_where_there_is_no_val(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    assert looks_folder(tmp_path).name == "test"
    (tmp_path / "val").mkdir()
    assert looks_folder(tmp_path).name == "val"
