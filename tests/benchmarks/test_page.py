"""docs/benchmarks.md says what the results say: its tables are made anew and compared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import page
from records import RESULTS
from tables_inference import _change

ROOT = Path(__file__).parents[2]

needs_results = pytest.mark.skipif(not any(RESULTS.glob("*/*.json")), reason="a source distribution holds no results")


@needs_results
def test_the_tables_are_those_that_the_results_give() -> None:
    text = page.PAGE.read_text()
    assert len(page.MARK.findall(text)) >= 15
    assert page.render(text) == text, "run: python benchmarks/page.py"


@needs_results
@pytest.mark.parametrize("figure", ["2.95 [2.32, 3.75]", "249.0 s", "7.47 [7.30, 7.63]", "165 ms"])
def test_a_figure_that_is_changed_by_hand_is_found(figure: str) -> None:
    text = page.PAGE.read_text()
    changed = text.replace(figure, figure.replace("5", "6").replace("4", "3"))
    assert changed != text
    assert page.render(changed) == text


@needs_results
def test_every_figure_of_a_measurement_stands_in_a_table() -> None:
    prose = page.MARK.sub("", page.PAGE.read_text())
    # ratios and times, as the tables have them, were written by hand then
    assert re.findall(r"\d+\.\d+ \[|\d+\.\d+ (?:ms|s)\b|\d+\.\d+ times", prose) == []


def test_marks_that_lead_nowhere_are_errors() -> None:
    with pytest.raises(ValueError, match="no table of the kind 'sums'"):
        page.render("<!-- table: sums a/b -->\n<!-- end of table -->\n")
    with pytest.raises(ValueError, match=r"no result .*unheard/of"):
        page.render("<!-- table: steps unheard/of -->\n<!-- end of table -->\n")


def test_what_stands_around_a_table_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: dict[str, Any] = {"top1": 0.9, "best_top1": 0.9, "train_seconds": 10.0, "total_seconds": 12.0, "curve": []}
    faster = run | {"train_seconds": 5.0, "total_seconds": 6.0}
    record = {
        "data": "cifar10",
        "command": "python x.py /home/me/runs/net",
        "environment": {"cpu": "A CPU", "num_cpus": 2, "versions": {"torch": "2"}},
        "contenders": {"peer": "a peer; looks cost nothing", "article": "…"},
        "runs": {"peer": [run], "article": [faster]},
    }
    (tmp_path / "train").mkdir()
    (tmp_path / "train/2026-01-02-x.json").write_text(json.dumps(record))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    before = "prose\n\n<!-- table: against_first train/2026-01-02-x -->\nold\n<!-- end of table -->\n\nmore\n"
    lines = page.render(before).splitlines()
    assert (lines[0], lines[-1]) == ("prose", "more")
    assert "old" not in lines
    assert "| a peer | 1 | 90.00 % | 10.0 s | 12.0 s |  |  |" in lines
    assert lines[7].endswith("| 1 | 90.00 % | 5.0 s | 6.0 s | 2.00 | 2.00 |")
    assert "2026-01-02; 2 cores of A CPU, torch 2; `python x.py …/runs/net`" in lines[9]


@pytest.mark.parametrize(
    ("drop", "bound", "told"),
    [
        (0.18, 0.34, "−0.18, at worst −0.34"),
        (-0.36, 0.9, "+0.36, at worst −0.90"),
        (0.0, -0.001, "0.00, at worst 0.00"),
    ],
)
def test_a_gain_is_told_as_one(drop: float, bound: float, told: str) -> None:
    assert _change({"drop": drop, "bound": bound}) == told
