"""Ambiguous tables are refused, or the guess is noted."""

from __future__ import annotations

from pathlib import Path

import pytest

from vivace.data.place import Data
from vivace.data.sources import open_source
from vivace.data.splits import DataSource
from vivace.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(6):
        (tmp_path / f"{index}.jpg").write_bytes(b"x")
    return tmp_path


def write(root: Path, text: str, name: str = "list.csv") -> Path:
    (root / name).write_text(text)
    return root / name


def rows(header: str, *cells: str) -> str:
    return "\n".join([header, *(f"{index}.jpg,{cell}" for index, cell in enumerate(cells))]) + "\n"


def read(root: Path, text: str, name: str = "list.csv") -> DataSource:
    return open_source(write(root, text, name))


def test_rows_without_a_split_are_counted(root: Path) -> None:
    source = read(root, rows("file_name,label,split", "a,train", "a,", "b,train", "b,NaN", "a,val"))
    assert len(source.splits["train"]) == 4
    assert source.notes[0] == "2 rows without a split were put into train"
    source = read(root, rows("file_name,label,split", "a,train", "a,train", "b,train", "b,"))
    assert source.notes == ("1 row without a split was put into train",)


@pytest.mark.parametrize("word", ["NaN", "nan", "null", "NULL", "None", "NA", "N/A", "<NA>"])
def test_a_word_for_an_empty_cell_is_not_a_class(root: Path, word: str) -> None:
    source = read(root, rows("file_name,label", "a", "a", "b", "b", word))
    assert source.classes == ("a", "b")
    assert [(row.reason, row.lines, row.message) for row in source.bad_rows] == [
        ("missing_label", (6,), f"list.csv, line 6: label is {word}, which is no class")
    ]
    assert source.notes == (
        f"left out 1 row whose class is {word}, which is read as empty: if it is the name of a class, use JSONL or "
        "class folders",
    )


def test_the_word_none_is_a_class(root: Path) -> None:
    assert read(root, rows("file_name,label", "some", "some", "none", "none")).classes == ("none", "some")


def test_a_class_called_na_is_possible_and_is_noted(root: Path) -> None:
    text = "".join(f'{{"file_name": "{index}.jpg", "label": "{"NA" if index % 2 else "EU"}"}}\n' for index in range(4))
    source = read(root, text, "list.jsonl")
    assert (source.classes, source.bad_rows) == (("EU", "NA"), ())
    assert source.notes == (
        "NA in list.jsonl is text, so it was read as the name of a class (2 rows): write null for a missing class",
    )


@pytest.mark.parametrize(
    ("header", "twins"),
    [
        ("file_name,label,label", "label (column 2), label (column 3)"),
        ("file_name,label,Label", "label, Label"),
        ("file_name,label,split,split", "split (column 3), split (column 4)"),
        ("file_name,cat,cat,dog", "cat (column 2), cat (column 3)"),
    ],
)
def test_two_columns_of_one_name_are_refused(root: Path, header: str, twins: str) -> None:
    path = write(root, f"{header}\n0.jpg{',0' * header.count(',')}\n")
    with pytest.raises(DataError, match="2 columns have the same name") as error:
        open_source(path)
    assert f"2 columns have the same name: {twins}. Rename all but one" in str(error.value)


def test_one_of_two_columns_may_be_named(root: Path) -> None:
    path = write(root, rows("file_name,label,label", "a,0", "a,1", "b,0", "b,1"))
    assert open_source(Data(path, label_column="label (column 3)")).classes == ("0", "1")
    # columns that are not used may be called what they like
    assert read(root, rows("file_name,label,note,note,,", "a,1,2,,", "a,,,,", "b,,,,", "b,,,,")).classes == ("a", "b")


def test_a_duplicate_key_in_a_line_of_jsonl_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: duplicate key label\. Keep one\."):
        read(root, '{"file_name": "0.jpg", "label": "a", "label": "b"}\n', "list.jsonl")


def test_a_one_hot_column_without_an_image_is_noted(root: Path) -> None:
    source = read(root, rows("file_name,a,b,other", "1,0,0", "1,0,0", "0,1,0", "0,1,0"))
    assert source.classes == ("a", "b")
    assert source.notes[-1] == "skipped 1 one-hot column without an image: other"


@pytest.mark.parametrize("twin", ["007", "7.0", "07.00"])
def test_classes_that_are_one_number_are_noted(root: Path, twin: str) -> None:
    source = read(root, rows("file_name,label", "7", "7", twin, twin, "70", "70"))
    assert len(source.classes) == 3
    assert source.notes == (f"classes that are the same number: {min(twin, '7')} and {max(twin, '7')}",)


@pytest.mark.parametrize(("told", "mark"), [("sep=;", ";"), ('"sep=,"', ","), ("sep=\t", "\t"), ("SEP=^", "^")])
def test_the_first_line_of_excel_names_the_delimiter(root: Path, told: str, mark: str) -> None:
    text = told + "\n" + rows("file_name,label", "a", "a", "b", "b", "").replace(",", mark)
    source = read(root, "\ufeff" + text)
    assert (source.classes, source.bad_rows[0].lines) == (("a", "b"), (7,))


def test_rows_that_are_quoted_as_a_whole_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r'each row is quoted as a whole, .*: got "file;label"\. Remove the quotes'):
        read(root, '"file;label"\n"0.jpg;a"\n"1.jpg;b"\n')
