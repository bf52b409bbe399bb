"""`benchmarks/targets.py`: the best budget of a sweep for each target, and how a run with that target compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import targets as module


def run(top1: float, seconds: float, *, reached: bool | None = None) -> dict[str, Any]:
    return {"val_top1": top1, "seconds": seconds, "processor_seconds": 2 * seconds, "epochs": 1.0, "reached": reached}


WITHIN = {"8": [run(0.62, 8), run(0.58, 8)], "12": [run(0.65, 12), run(0.65, 12)], "30": [run(0.8, 30), run(0.8, 30)]}


def test_the_best_budget_is_the_smallest_whose_mean_reaches_the_target() -> None:
    rows = module.summarize(
        WITHIN,
        {
            "0.6": [run(0.61, 8, reached=True), run(0.61, 12, reached=True)],
            "0.7": [run(0.71, 36, reached=True)],
            "0.75": [run(0.75, 20, reached=True), run(0.74, 20, reached=False)],
            "0.9": [run(0.91, 90, reached=True)],
        },
    )
    assert [(row["best_within"], row["reached"], row["ratios"]["seconds"]) for row in rows] == [
        ("8", True, 1.25),
        ("30", True, 1.2),
        ("30", False, None),
        (None, True, None),
    ]


def test_a_sweep_is_interleaved_and_its_order_alternates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []

    def one_run(data: Path, options: list[str], seed: int) -> dict[str, Any]:
        called.append((*options, seed))
        return run(0.7, 10.0, reached=True)

    monkeypatch.setattr(module, "one_run", one_run)
    monkeypatch.setattr(
        "sys.argv", ["targets.py", "digits", "--targets", "0.6", "--within", "8", "12", "--out", str(tmp_path)]
    )
    module.main()
    assert called[1:] == [
        ("--within", "8", 0),
        ("--within", "12", 0),
        ("--target", "0.6", 0),
        ("--target", "0.6", 1),
        ("--within", "12", 1),
        ("--within", "8", 1),
    ]
    record = json.loads(next((tmp_path / "targets").glob("*.json")).read_text())
    assert record["rows"][0]["best_within"] == "8"
    assert "| 0.6 | 8 | yes | 1.00 | 1.00 |" in capsys.readouterr().out
