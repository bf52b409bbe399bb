"""How results are kept, and that their index tells all of them."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import index
import records
from keep import main as keep_report

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not any(records.RESULTS.glob("*/*.json")), reason="a source distribution holds no results")
def test_the_index_is_the_one_that_the_results_give() -> None:
    assert (records.RESULTS / "README.md").read_text() == index.index(), "run: python benchmarks/index.py"


def test_every_result_lies_below_its_kind() -> None:
    assert not list(records.RESULTS.glob("*.json"))
    assert {path.name for path in records.RESULTS.iterdir() if path.is_dir()} <= set(index.KINDS)


def test_a_result_is_stamped_and_a_second_one_does_not_replace_it(tmp_path: Path) -> None:
    record = {"date": "2026-01-02", "environment": {"cpu": "A CPU", "num_cpus": 2}, "command": "python x.py"}
    first, second = (records.keep(record | {"n": number}, "step", "Net", tmp_path) for number in (1, 2))
    assert first == tmp_path / "step/2026-01-02-net-2x-a-cpu.json"
    assert second.name == "2026-01-02-net-2x-a-cpu-2.json"
    kept = json.loads(first.read_text())
    assert (kept["n"], kept["schema"]) == (1, records.SCHEMA)
    assert kept["commit"] is None or len(kept["commit"].rstrip("+")) >= 40


def test_what_a_program_found_is_kept_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/trust.py", "sets", "a run"])
    found, table = {"data": "photos", "subject": "sets"}, ["| a |", "| --- |"]
    path = records.save_found(
        found, "trust", "sets-photos", tmp_path, title="Trust", conditions="; photos", table=table
    )
    kept = json.loads(path.read_text())
    assert (kept["command"], kept["date"], kept["data"]) == (
        "python benchmarks/trust.py sets a run",
        records.today(),
        "photos",
    )
    assert kept["environment"]["num_cpus"] >= 1
    page = path.with_suffix(".md").read_text()
    assert page.startswith(f"# Trust, {records.today()}")
    assert page in capsys.readouterr().out


def test_what_a_file_does_not_say_is_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/2026-01-02-x.json").write_text("{}")
    row = index.index(tmp_path).splitlines()[-1]
    assert row.count(index.NOT_RECORDED) == 5
    (tmp_path / "unheard").mkdir()
    (tmp_path / "unheard/2026-01-02-x.json").write_text("{}")
    with pytest.raises(ValueError, match="unheard"):
        index.index(tmp_path)


def test_folders_of_one_machine_are_cut_from_commands() -> None:
    assert records.shown("python x.py /home/me/runs/net --data data/x") == "python x.py …/runs/net --data data/x"


def test_a_report_of_vivace_is_kept_with_its_page_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "bundle/receipt.json"
    report.parent.mkdir()
    report.write_text(json.dumps({"asked": {}, "environment": {"cpu": "A CPU", "num_cpus": 2}}))
    (tmp_path / "bundle/receipt.md").write_text("page")
    (tmp_path / "bundle/pareto.png").write_text("figure")
    words = ["accelerate", str(report), "net", "--command", "vivace x", "--date", "2026-01-02", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["keep.py", *words])
    keep_report()
    kept = tmp_path / "accelerate/2026-01-02-net-2x-a-cpu.json"
    assert json.loads(kept.read_text())["command"] == "vivace x"
    assert kept.with_suffix(".md").read_text() == "page"
    assert kept.with_suffix(".png").read_text() == "figure"


def test_a_source_distribution_holds_the_package_and_no_results() -> None:
    builder = pytest.importorskip("hatchling.builders.sdist").SdistBuilder(str(ROOT))
    files = {file.distribution_path for file in builder.recurse_included_files()}
    assert "src/vivace/__init__.py" in files
    assert "benchmarks/train.py" in files
    assert "tests/test_readme.py" in files
    assert [name for name in files if name.startswith("benchmarks/results/")] == ["benchmarks/results/README.md"]
    assert not [name for name in files if name.startswith(("data/", "runs/", ".venv"))]
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert set(tracked.split()) <= files


def test_the_extra_all_leaves_out_what_conflicts() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (whole,) = extras["all"]
    named = set(whole.removeprefix("vivace[").removesuffix("]").split(","))
    assert {"accelerate", "data", "report"} <= named <= set(extras)
    assert not named & {"all", "dev", "executorch", "heic", "litert", "tensorrt"}
