"""vivace runs: a line for each run, whatever else is in the folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import vivace
from answers import last_answer
from vivace.bundle import Bundle
from vivace.cli import main
from vivace.cli.runs import duration, few_digits
from vivace.cli.train import _draw_curves
from vivace.errors import RunFolderError
from vivace.outputs import write_sealed


@pytest.fixture
def folder(trained: tuple[Bundle, Path], tmp_path: Path) -> Path:
    """Two finished runs, and what else such a folder may hold."""
    run = trained[0].folder.parent
    for name, seconds in (("first", 1_000_000_000), ("second", 2_000_000_000)):
        shutil.copytree(run, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "result.json", (seconds, seconds))
    for name in ("stopped", "cut", "lying", "bare"):
        (tmp_path / "runs" / name).mkdir()
        shutil.copy(run / "recipe.yaml", tmp_path / "runs" / name)
    for name in ("stopped", "cut", "lying"):
        shutil.copy(run / "run.json", tmp_path / "runs" / name)
    (tmp_path / "runs" / "cut" / "result.json").write_text('{"val_top1": 0.')
    result = json.loads((run / "result.json").read_text())
    (tmp_path / "runs" / "lying" / "result.json").write_text(json.dumps(result | {"val_top1": "all"}))
    (tmp_path / "runs" / "photos").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("none")
    (tmp_path / "runs" / "circle").symlink_to("circle")
    return tmp_path / "runs"


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def test_finished_runs_come_first_and_no_other_folder_is_an_error(folder: Path, trained: tuple[Bundle, Path]) -> None:
    before = state_of(folder)
    found = vivace.runs(folder)
    assert state_of(folder) == before
    assert [(run.path.name, run.status) for run in found] == [
        ("second", "finished"),
        ("first", "finished"),
        ("stopped", "unfinished"),
        ("lying", "damaged"),
        ("cut", "damaged"),
        ("bare", "damaged"),
    ]
    problems = {run.path.name: run.problem or "" for run in found}
    assert problems["bare"] == "run.json is missing"
    assert problems["lying"] == "result.json has a wrong val_top1: 'all'"
    assert problems["cut"].startswith("result.json is not plain JSON")
    assert found.passed_over == ("circle", "notes.txt", "photos")
    result = json.loads((folder / "first" / "result.json").read_text())
    run = found.runs[0]
    assert (run.data, run.recipe, run.model) == ("colours", "fast", "fast_cnn")
    assert (run.val_top1, run.test_top1, run.seconds) == tuple(
        result[key] for key in ("val_top1", "test_top1", "total_seconds")
    )
    files = (folder / "second" / "bundle").iterdir()
    assert run.bytes == sum(path.stat().st_size for path in files)
    assert run.finished == "2033-05-18T03:33:20+00:00"


def test_the_verb_prints_a_table_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(folder)]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split()[:6] == ["run", "data", "recipe", "model", "val", "test"]
    assert lines[1].startswith(f"{folder / 'second'}")
    assert lines[1].endswith("2033-05-18 03:33")
    assert len({line.index("colours") for line in lines[1:4]}) == 1
    assert lines[-1] == f"6 runs in {folder}"
    assert f"unfinished: {folder / 'stopped'} (it is running, or was stopped)" in shown.err
    assert "passed over, no runs: 3 (circle (a link), notes.txt, photos)" in shown.err
    assert main(["runs", str(folder), "--json"]) == 0
    answer = last_answer(capsys.readouterr().out)
    assert [run["status"] for run in answer["runs"]].count("damaged") == 3


def test_a_run_itself_is_one_and_an_empty_folder_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [run.path for run in vivace.runs(folder / "first")] == [folder / "first"]
    (tmp_path / "empty").mkdir()
    assert main(["runs", str(tmp_path / "empty")]) == 0
    assert capsys.readouterr().out == f"0 runs in {tmp_path / 'empty'}\n"
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(RunFolderError, match=r"^there are no runs in runs: No such file"):
        vivace.runs()
    assert main(["runs"]) == 2


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500.0, "2 h 5 min")]
)
def test_durations_are_read_at_a_glance(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize("content", ["[]", "null", '"x"', '{"data": 5}', "\x00", "[" * 100_000])
@pytest.mark.parametrize("name", ["run.json", "result.json", "recipe.yaml"])
def test_whatever_a_file_holds_the_run_is_damaged_and_the_others_are_listed(
    name: str, content: str, folder: Path, capsys: Any
) -> None:
    (folder / "first" / name).write_text(content)
    assert main(["runs", str(folder), "--json"]) == 0
    runs = {Path(run["path"]).name: run for run in last_answer(capsys.readouterr().out)["runs"]}
    assert runs["first"]["status"] == "damaged"
    assert runs["first"]["problem"]
    assert runs["second"]["status"] == "finished"


@pytest.mark.parametrize("value", [5.0, 1e308, 99999999999999999999, -0.1, True])
@pytest.mark.parametrize("key", ["val_top1", "test_top1"])
def test_an_accuracy_that_is_no_fraction_is_damage(key: str, value: Any, folder: Path) -> None:
    result = json.loads((folder / "first" / "result.json").read_text())
    (folder / "first" / "result.json").write_text(json.dumps(result | {key: value}))
    (run,) = vivace.runs(folder / "first")
    assert (run.status, run.val_top1) == ("damaged", None)
    assert run.problem == f"result.json has a wrong {key}: {value!r}"


def test_a_row_stays_short_whatever_a_run_calls_its_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads((folder / "first" / "run.json").read_text())
    for name, text in (("first", "e" + "\u0301" * 2000), ("second", "x" * 5000), ("stopped", "\u4e2d" * 100)):
        facts["data"]["name"] = text
        (folder / name / "run.json").write_text(json.dumps(facts))
    assert main(["runs", str(folder)]) == 0
    shown = capsys.readouterr()
    assert all(len(line) < 400 for line in (shown.out + shown.err).splitlines())
    assert f"damaged: {folder / 'second'} (run.json has a wrong name: 'xxx" in shown.err
    (folder / "first" / "run.json").write_text(json.dumps(facts) + " " * 2**20)
    assert vivace.runs(folder / "first").runs[0].problem == "run.json is larger than 1,048,576 bytes"


def test_names_of_folders_forge_no_lines_and_links_are_passed_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "a\n7 runs in b"
    odd.mkdir()
    (odd / "x\nfinished: y").mkdir()
    (odd / "stopped\nfinished: z").mkdir()
    shutil.copy(folder / "stopped" / "recipe.yaml", odd / "stopped\nfinished: z")
    (odd / "lk").symlink_to(folder / "first")
    assert main(["runs", str(odd)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"1 run in {tmp_path}/a\\n7 runs in b"
    lines = shown.err.splitlines()
    assert len(lines) == 2
    assert lines[1] == "passed over, no runs: 2 (lk (a link), x\\nfinished: y)"
    assert vivace.runs(odd).passed_over == ("lk", "x\nfinished: y")


@pytest.mark.parametrize("given", [None, 5, b"runs", "\0"])
def test_what_is_no_path_is_refused_on_one_line(given: Any) -> None:
    with pytest.raises(RunFolderError, match=r"^not a folder of runs: got "):
        vivace.runs(given)


def test_a_bundle_that_is_missing_or_cut_short_makes_the_run_damaged(folder: Path) -> None:
    shutil.rmtree(folder / "first" / "bundle")
    with (folder / "second" / "bundle" / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    runs = {run.path.name: run for run in vivace.runs(folder)}
    assert list(runs)[:2] == ["second", "first"]
    assert (runs["first"].status, runs["first"].problem) == ("damaged", "its bundle is missing")
    assert runs["second"].status == "damaged"
    assert (runs["second"].problem or "").startswith("bundle/model.safetensors is damaged: 100 bytes, expected ")


def test_the_report_of_a_search_is_not_listed_as_no_run(folder: Path) -> None:
    write_sealed(folder / "first-accelerated-receipt.json", {"rows": []})
    (folder / "own-receipt.json").write_text("{}")
    assert vivace.runs(folder).passed_over == ("circle", "notes.txt", "own-receipt.json", "photos")


@pytest.mark.parametrize(("epochs", "shown"), [(0.948148, "0.95"), (6.23704, "6.24"), (20.0, "20"), (0.00312, "0.003")])
def test_epochs_are_rounded_for_people(epochs: float, shown: str) -> None:
    assert few_digits(epochs) == shown


def test_curves_that_can_not_be_drawn_are_a_warning_and_no_value(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "first" / "metrics.csv").write_bytes(b"\xff\xeb")
    value, warnings = _draw_curves(folder / "first", None)
    assert value == "not drawn"
    assert len(warnings) == 1
    assert capsys.readouterr().err == f"warning: {warnings[0]}\n"
