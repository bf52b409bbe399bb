"""A comparison that is stopped: what was measured is saved, in whole rounds, and the exit status tells."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import train as train_module
from contenders import Contender, Result

NAMES = ["article", "keras", "vivace-fast"]


def result(top1: float) -> Result:
    return Result(
        top1=top1, best_top1=top1, train_seconds=10.0, total_seconds=12.0, curve=((5.0, top1 / 2), (10.0, top1))
    )


def compare(monkeypatch: pytest.MonkeyPatch, out: Path, fails_at: int, error: BaseException) -> list[str]:
    """Runs main() for three contenders and two rounds, whose run number `fails_at` raises; the names that ran."""
    ran: list[str] = []

    def run_once(contender: Contender, *_: Any, **__: Any) -> Result:
        if len(ran) == fails_at:
            raise error
        ran.append(contender.name)
        return result(0.5 + len(ran) / 100)

    monkeypatch.setattr(train_module, "run_once", run_once)
    monkeypatch.setattr(train_module, "ensure_environment", lambda *_: None)
    arguments = ["train.py", "data/some", *NAMES, "--rounds", "2", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    train_module.main()
    return ran


def saved(out: Path) -> dict[str, Any]:
    (path,) = out.glob("train/*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_whole_rounds_are_saved_when_a_contender_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="what was measured is saved: keras ended with status 1"):
        compare(monkeypatch, tmp_path, 4, RuntimeError("keras ended with status 1"))
    record = saved(tmp_path)
    # the second round began with the last contender: its run there has no partners
    assert {name: len(runs) for name, runs in record["runs"].items()} == dict.fromkeys(NAMES, 1)
    assert [runs[0]["top1"] for runs in record["runs"].values()] == [0.51, 0.52, 0.53]
    assert record["rounds"] == 1
    assert record["stopped_by"] == "keras ended with status 1"


def test_who_never_ran_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="KeyboardInterrupt"):
        compare(monkeypatch, tmp_path, 2, KeyboardInterrupt())
    record = saved(tmp_path)
    assert list(record["runs"]) == list(record["contenders"]) == NAMES[:2]
    assert [row["contender"] for row in record["summary"]] == NAMES[:2]


def test_without_the_first_one_there_is_nothing_to_save(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to compare with: it broke"):
        compare(monkeypatch, tmp_path, 0, RuntimeError("it broke"))
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_that_ends_says_that_nothing_stopped_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = compare(monkeypatch, tmp_path, 99, RuntimeError())
    assert ran == [*NAMES, *NAMES[::-1]]
    assert saved(tmp_path)["stopped_by"] is None
    assert saved(tmp_path)["rounds"] == 2
