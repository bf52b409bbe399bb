"""Commands that take turns: one runs at a time, its own seconds are counted, none is left behind."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

import pytest

import turns as module
from environments import EnvironmentFailed
from turns import Player, markdown, take_turns

# works for so many seconds of processor time, and tells when it was awake
WORKER = """
import json, sys, time
awake = []
while time.process_time() < float(sys.argv[1]):
    awake.append(time.monotonic())
print("something else")
print(json.dumps({"awake": awake}))
"""


def worker(name: str, seconds: float, folder: Path) -> Player:
    return Player(name, [sys.executable, "-c", WORKER, str(seconds)], folder, os.environ)


@pytest.mark.alone
def test_one_runs_at_a_time_and_its_seconds_are_those_of_its_turns(tmp_path: Path) -> None:
    players = [worker("long", 0.6, tmp_path), worker("short", 0.2, tmp_path)]
    began = time.perf_counter()
    take_turns(players, 0.05)
    wall = time.perf_counter() - began
    long, short = players
    assert long.seconds > short.seconds > 0.1
    assert 0.5 * wall < long.seconds + short.seconds <= wall
    awake = {player.name: player.last_line()["awake"] for player in players}
    # when the short one was awake the long one slept: the order of all moments changes sides at the ends of turns alone
    moments = sorted([(at, "long") for at in awake["long"]] + [(at, "short") for at in awake["short"]])
    changes = sum(one[1] != two[1] for one, two in itertools.pairwise(moments))
    assert 2 <= changes <= 2 * (wall / 0.05) + 2
    assert len(moments) > 10 * changes


def test_where_one_fails_its_last_words_are_told_and_no_other_is_left(tmp_path: Path) -> None:
    other = worker("other", 60, tmp_path)
    failing = Player("failing", [sys.executable, "-c", "raise SystemExit('no such data')"], tmp_path, os.environ)
    with pytest.raises(RuntimeError, match="failing ended with status 1:\nno such data"):
        take_turns([other, failing], 0.2)
    assert other._process is not None
    assert other._process.returncode is not None


def test_an_environment_that_cannot_be_made_ends_it_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, folder: Path) -> None:
        raise EnvironmentFailed(f"the environment of {name} could not be made")

    monkeypatch.setattr(module, "ensure_environment", fail)
    monkeypatch.setattr(sys, "argv", ["turns.py", str(tmp_path), "fastai", "vivace-fast"])
    with pytest.raises(SystemExit, match="the environment of fastai could not be made"):
        module.main()


def test_the_table_has_a_row_for_each() -> None:
    record = {
        "data": "cifar10",
        "date": "2026-11-27",
        "environment": {"cpu": "CPU", "num_cpus": 2, "versions": {"torch": "2.15.0"}, "python": "3.11.7"},
        "rounds": 2,
        "turn_seconds": 10.0,
        "contenders": {"airbench": "…", "vivace": "…"},
        "command": "python benchmarks/turns.py",
        "ratios": {"airbench": (1.0, 1.0, 1.0), "vivace": (3.0, 2.5, 3.5)},
        "runs": {
            "airbench": [{"top1": 0.9, "seconds": 600.0}, {"top1": 0.91, "seconds": 660.0}],
            "vivace": [{"top1": 0.9, "seconds": 200.0}, {"top1": 0.9, "seconds": 220.0}],
        },
    }
    text = markdown(json.loads(json.dumps(record)))
    assert "| airbench | 90.00, 91.00 | 600.0, 660.0 | 1.00 [1.00, 1.00] |" in text
    assert "| vivace | 90.00, 90.00 | 200.0, 220.0 | 3.00 [2.50, 3.50] |" in text
