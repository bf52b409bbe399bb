"""Prediction tables are complete in every format, whatever the file names."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from vivace.batch.names import name_of_written, written_name
from vivace.batch.outputs import Table, check_table
from vivace.batch.pipeline import Batch
from vivace.batch.rows import Columns
from vivace.batch.unfinished import Unfinished
from vivace.errors import ConfigError, MissingExtra
from vivace.outputs import csv_text
from vivace.prediction import Failure
from vivace.predictor import Prediction

Outcome = Prediction | Failure
ODD = 'a, "b"\nc.png'
PLAIN: list[Outcome] = [
    Prediction(ODD, "猫", 0.1 + 0.2, (("猫", 0.1 + 0.2),)),
    Failure("d.png", "empty", "the file is empty"),
]
CELLS = [
    {"path": ODD, "error": "", "label_1": "猫", "probability_1": 0.1 + 0.2},
    {"path": "d.png", "error": "empty", "label_1": "", "probability_1": None},
]
# as os.fsdecode gives a name in Latin-1
STRANGE: list[Outcome] = [Prediction(os.fsdecode(b"caf\xe9.png"), "cat", 1.0, (("cat", 1.0),))]


def write(outcomes: list[Outcome], path: Path) -> Path:
    with Unfinished(path, {}, resume=False) as unfinished:
        table = Table(path, Columns(num_ranks=1, reliance=False), unfinished)
        table.write(Batch([], outcomes, {}))
        unfinished.close_files()
        table.finish()
        unfinished.remove()
    return path


def test_csv_gives_back_what_was_written(tmp_path: Path) -> None:
    written = write(PLAIN, tmp_path / "out.csv").read_text(encoding="utf-8")
    first, second = csv.DictReader(io.StringIO(written))
    assert first["path"] == ODD
    assert first["label_1"] == "猫"
    assert float(first["probability_1"]) == 0.1 + 0.2
    assert second == {"path": "d.png", "error": "empty", "label_1": "", "probability_1": ""}


FORMULAS = ("=HYPERLINK(A1)", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-\r@", "-", "=")
SPACED = (" =1", "\u3000\uff1d1", "\uff1d1", "\uff0b1", "\uff0d1", "\uff20A")
NUMBERS = ("-1", "+2.5", "-1e-3", -0.5, 3, None, True, "a=b", "a\r=1", " -1", "'", "")


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    """Class and file names may be untrusted, and spreadsheets run what looks like a formula."""
    text = csv_text([["=1+1", "path"], *([value, "x.png"] for value in [*FORMULAS, *SPACED, *NUMBERS])])
    header, *rows = csv.reader(io.StringIO(text.decode(), newline=""))
    assert header == ["'=1+1", "path"]
    expected = [
        *(f"'{value}" for value in (*FORMULAS, *SPACED)),
        *("" if value is None else str(value) for value in NUMBERS),
    ]
    assert [row[0] for row in rows] == expected
    outcomes: list[Outcome] = [Prediction(text, text, 1.0, ((text, 1.0),)) for text in FORMULAS]
    table = csv.reader(io.StringIO(write(outcomes, tmp_path / "out.csv").read_bytes().decode(), newline=""))
    assert [row[0] for row in table][1:] == [f"'{text}" for text in FORMULAS]
    # the other formats are not opened by spreadsheets
    lines = write(outcomes, tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["label_1"] for line in lines] == list(FORMULAS)


def test_json_lines_give_back_what_was_written(tmp_path: Path) -> None:
    lines = write(PLAIN, tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == CELLS


def test_parquet_gives_back_what_was_written(tmp_path: Path) -> None:
    path = write(PLAIN, tmp_path / "new" / "out.parquet")
    assert pyarrow.parquet.read_table(path).to_pylist() == CELLS


def test_the_columns_of_a_parquet_file_do_not_depend_on_its_rows(tmp_path: Path) -> None:
    one, other = (
        pyarrow.parquet.read_schema(write(outcomes, tmp_path / f"{len(outcomes)}.parquet"))
        for outcomes in (PLAIN, PLAIN[1:])
    )
    assert one.equals(other)


def test_names_that_are_not_utf8_are_written_the_same_in_every_format(tmp_path: Path) -> None:
    """As valid text, of which the name of the file can be made again."""
    for extension in ("csv", "jsonl", "parquet"):
        write(STRANGE, tmp_path / f"out.{extension}")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8")))
    (line,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    names = [
        row["path"],
        json.loads(line)["path"],
        pyarrow.parquet.read_table(tmp_path / "out.parquet")["path"][0].as_py(),
    ]
    assert names == ["caf\\xe9.png"] * 3
    assert os.fsencode(name_of_written(names[0])) == b"caf\xe9.png"


@pytest.mark.parametrize(
    "name",
    [
        b"a.png",
        b"\xe9",
        b"\\xe9",
        b"\\x5c\xe9",
        b"\\\xe9x41",
        b"\\x\xff",
        "猫\\x5cx41".encode(),
        b"\\\\x00\\xA0\\",
        b"\\x4\xe9",
    ],
)
def test_every_name_can_be_had_back_from_how_it_is_written(name: bytes) -> None:
    text = written_name(os.fsdecode(name))
    text.encode()
    assert os.fsencode(name_of_written(text)) == name


def test_half_a_character_is_no_text() -> None:
    assert written_name("a\ud800b\U0001f600") == "a\ufffdb\U0001f600"


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_no_rows_make_a_file_too(tmp_path: Path, extension: str) -> None:
    assert write([], tmp_path / f"out.{extension}").exists()


def test_another_extension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"the format is unknown: got 'out\.xlsx'\. Use \.csv, \.jsonl or \.parquet\."
    ):
        check_table(tmp_path / "out.xlsx")


def test_without_pyarrow_the_error_says_how_to_fix_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"writing parquet needs pyarrow.*pip install 'vivace\[data\]'"):
        check_table(tmp_path / "out.parquet")
