"""Prediction tables are complete in every format, whatever the file names."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from vivace.errors import ConfigError, MissingExtra
from vivace.reporting.tables import write_rows

PLAIN: list[dict[str, Any]] = [
    {"path": 'a, "b"\nc.png', "error": "", "label_1": "猫", "probability_1": 0.1 + 0.2},
    {"path": "d.png", "error": "empty", "label_1": "", "probability_1": None},
]
# as os.fsdecode gives a name in Latin-1
STRANGE = [{"path": os.fsdecode(b"caf\xe9.png"), "label_1": "cat", "probability_1": 1.0}]


def test_csv_gives_back_what_was_written(tmp_path: Path) -> None:
    write_rows(PLAIN, tmp_path / "out.csv")
    first, second = csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8")))
    assert first["path"] == PLAIN[0]["path"]
    assert first["label_1"] == "猫"
    assert float(first["probability_1"]) == PLAIN[0]["probability_1"]
    assert second == {"path": "d.png", "error": "empty", "label_1": "", "probability_1": ""}


FORMULAS = ("=HYPERLINK(A1)", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-\r@", "-", "=")
NUMBERS = ("-1", "+2.5", "-1e-3", -0.5, 3, None, True, "a=b", "a\r=1", " =1", "'", "")


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    """Class and file names may be untrusted, and spreadsheets run what looks like a formula."""
    values = [*FORMULAS, *NUMBERS]
    write_rows([{"=1+1": value, "path": "x.png"} for value in values], tmp_path / "out.csv")
    header, *rows = csv.reader(io.StringIO((tmp_path / "out.csv").read_bytes().decode(), newline=""))
    assert header == ["'=1+1", "path"]
    expected = [*(f"'{value}" for value in FORMULAS), *("" if value is None else str(value) for value in NUMBERS)]
    assert [row[0] for row in rows] == expected
    # the other formats are not opened by spreadsheets
    write_rows([{"label_1": value} for value in FORMULAS], tmp_path / "out.jsonl")
    read = [json.loads(line)["label_1"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert read == list(FORMULAS)


def test_json_lines_give_back_what_was_written(tmp_path: Path) -> None:
    write_rows(PLAIN, tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == PLAIN


def test_parquet_gives_back_what_was_written(tmp_path: Path) -> None:
    write_rows(PLAIN, tmp_path / "new" / "out.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "new" / "out.parquet").to_pylist() == PLAIN


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    for extension in ("csv", "jsonl", "parquet"):
        write_rows(STRANGE, tmp_path / f"out.{extension}")
    assert b"caf\xe9.png,cat,1.0" in (tmp_path / "out.csv").read_bytes()
    assert os.fsencode(json.loads((tmp_path / "out.jsonl").read_text())["path"]) == b"caf\xe9.png"
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()[0]["path"] == "caf\\udce9.png"


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_no_rows_make_a_file_too(tmp_path: Path, extension: str) -> None:
    write_rows([], tmp_path / f"out.{extension}")
    assert (tmp_path / f"out.{extension}").exists()


def test_another_extension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"the format is unknown: got 'out\.xlsx'\. Use \.csv, \.jsonl or \.parquet\."
    ):
        write_rows(PLAIN, tmp_path / "out.xlsx")


def test_without_pyarrow_the_error_says_how_to_fix_it_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.parquet"
    path.write_bytes(b"old")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"writing parquet needs pyarrow.*pip install 'vivace\[data\]'"):
        write_rows(PLAIN, path)
    assert path.read_bytes() == b"old"
