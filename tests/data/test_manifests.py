"""Manifests: every problem is reported with its line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vivace.data.layouts.tables import open_table
from vivace.data.place import Data
from vivace.data.sources import open_source
from vivace.errors import DataError

GOOD = "file_name,label\n0.jpg,a\n1.jpg,a\n2.jpg,b\n3.jpg,b\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(6):
        (tmp_path / f"{index}.jpg").write_bytes(b"x")
    (tmp_path / "page.pdf").write_bytes(b"x")
    return tmp_path


def write(root: Path, text: str, name: str = "list.csv") -> Path:
    (root / name).write_text(text)
    return root / name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (".,b", "line 6: the file lies outside the manifest's folder: '.'. Move it in."),
    ],
)
def test_a_fault_is_reported_with_its_line(root: Path, line: str, message: str) -> None:
    path = write(root, GOOD + line + "\n")
    with pytest.raises(DataError) as error:
        open_source(path)
    assert str(error.value) == f"{path}, {message}"


def test_a_file_that_cant_be_read_is_reported_with_its_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, *_, **__: not path.endswith("2.jpg"))
    with pytest.raises(DataError, match=r"line 4: the file can't be read: '2.jpg'. Check its permissions"):
        open_source(write(root, GOOD))


def wide(kind: str, num_columns: int, place: Path) -> Path:
    """A table with this many columns, of which the first two are valid."""
    names = ["file_name", "label", *(f"c{number}" for number in range(num_columns - 2))]
    rows = [[f"{1 + number % 3}.jpg", "ab"[number % 2], *["0"] * (num_columns - 2)] for number in range(3)]
    path = place / f"wide.{kind.partition(' ')[0]}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(
            pyarrow.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path
        )
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        mark = "\t" if kind == "tsv" else ","
        start = "# " if kind == "csv #" else ""
        path.write_text(start + "".join(mark.join(row) + "\n" for row in [names, *rows]))
    return path


@pytest.mark.parametrize("kind", ["csv", "csv #", "tsv", "jsonl", "parquet"])
def test_a_table_with_too_many_columns_is_refused_early(root: Path, kind: str) -> None:
    with open_table(wide(kind, 10_000, root), []) as (columns, _, rows):
        assert len(columns) == 10_000
        assert len(list(rows(columns[:2]))) == 3
    message = r"wide\.\w+(, line 1)?: 10,001 columns, the limit is 10,000\. Keep only those for files, "
    with pytest.raises(DataError, match=message):
        open_source(wide(kind, 10_001, root))


def test_a_wide_row_of_jsonl_is_refused_with_its_line(root: Path) -> None:
    wider = json.dumps({"file_name": "1.jpg", "label": "a", **{str(number): 0 for number in range(10_000)}})
    (root / "x.jsonl").write_text(f'{{"file_name": "1.jpg", "label": "a"}}\n{wider}\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: 10,002 columns, the limit is 10,000\. Keep only"):
        open_source(root / "x.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", "line 2: not a JSON object: got '{bad'. Write one {…} per line."),
        ("[1]", "line 2: not a JSON object: got '[1]'. Write one {…} per line."),
        ("[" * 100_000, "line 2: not a JSON object"),
        ('{"file_name": "1.jpg", "label": {"a": 1}}', "line 2: label is not text: got {'a': 1}."),
        ('{"file_name": "1.jpg", "label": 0.5}', "line 2: label is not text: got 0.5."),
    ],
)
def test_a_wrong_line_of_jsonl_is_reported(root: Path, line: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        open_source(write(root, '{"file_name": "0.jpg", "label": "a"}\n' + line + "\n", "list.jsonl"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_whole_numbers_are_labels(root: Path) -> None:
    lines = [f'{{"file_name": "{index}.jpg", "label": {index % 2}}}' for index in range(4)]
    assert open_source(write(root, "\n".join(lines), "list.jsonl")).classes == ("0", "1")


def test_of_a_parquet_manifest_only_the_three_columns_are_read(root: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pyarrow.table(
        {
            "file_name": [f"{index}.jpg" for index in range(6)],
            "label": [0, 0, 1, 1, 0, 1],
            "split": ["train"] * 4 + ["test"] * 2,
            # a column that to_pylist can't turn into Python values: reading it would fail
            "image": pyarrow.array([2**62] * 6, type=pyarrow.timestamp("ms")),
        }
    )
    parquet.write_table(table, root / "list.parquet")
    source = open_source(root / "list.parquet")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 4, "test": 2}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_file_of_something_else_is_refused(root: Path, suffix: str) -> None:
    path = root / f"list.{suffix}"
    path.write_bytes(os.urandom(64) + b"\0\n" * 40)
    with pytest.raises(DataError) as error:
        open_source(path)
    assert str(path) in str(error.value)


def test_an_empty_manifest_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="the manifest is empty"):
        open_source(write(root, ""))


def lines(*head: str, sep: str = ",", name: str = "{i}.jpg", label: str = "{c}") -> str:
    rows = [sep.join((name.format(i=index), label.format(c="ab"[index // 2]))) for index in range(4)]
    return "\n".join([sep.join(head), *rows]) + "\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("upper.csv", lines("File_Name ", " LABEL")),
        ("semicolon.csv", lines("file_name", "label", sep=";")),
        ("x.tsv", lines("file_name", "label", sep="\t")),
        ("tabs.csv", lines("file_name", "label", sep="\t")),
        ("image.csv", lines("image", "class")),
        ("path.csv", lines("Path", "Category")),
        ("one.csv", lines("id", "what it is")),
        ("noext.csv", lines("file_name", "label", name="{i}")),
        ("breed.csv", lines("id", "breed", name="{i}")),
        ("folder.csv", lines("id", "breed", name="deep{i}")),
        ("blank_lines.csv", lines("file_name", "label").replace("\n", "\r\n\r\n")),
        ("bom.csv", "\ufeff" + lines("file_name", "label")),
        ("onehot.csv", "id,a,b\n0.jpg,1.0,0.0\n1.jpg,1,0\n2.jpg,0,1\n3.jpg,0,1\n"),
        ("repeated.csv", lines("file_name", "label") + "0.jpg,a\n"),
    ],
)
def test_common_tables_are_understood(root: Path, name: str, text: str) -> None:
    (root / "photos").mkdir()
    for index in range(4):
        (root / "photos" / f"deep{index}.JPG").write_bytes(b"x")
    source = open_source(write(root, text, name))
    assert (source.classes, source.splits["train"].labels.tolist()) == (("a", "b"), [0, 0, 1, 1])


def test_utf16_of_spreadsheets_is_read(root: Path) -> None:
    (root / "list.csv").write_bytes(lines("file_name", "label", sep="\t", label="{c}ä").encode("utf-16"))
    assert open_source(root / "list.csv").classes == ("aä", "bä")


def test_guesses_are_noted(root: Path) -> None:
    notes = open_source(write(root, lines("id", "breed", name="{i}"))).notes
    assert notes == (
        "image files are in the column id, classes in breed",
        "files that are not where the table says were found elsewhere, such as 0.jpg",
    )
    assert "one-hot columns found: a, b" in open_source(write(root, "id,a,b\n0,1,0\n1,1,0\n2,0,1\n3,0,1\n")).notes
    assert open_source(write(root, GOOD + "0.jpg,a\n")).notes == ("left out 1 duplicate line of list.csv",)


def test_columns_may_be_named(root: Path) -> None:
    path = write(root, "a,b,c\n0.jpg,x,1\n1.jpg,x,2\n2.jpg,y,1\n3.jpg,y,2\n")
    assert open_source(Data(path, image_column="a", label_column="b")).classes == ("x", "y")
    assert open_source(Data(path, image_column="A", label_column="c")).classes == ("1", "2")
    with pytest.raises(DataError, match=r"there is no column 'd'\. Name one of its columns: a, b, c"):
        open_source(Data(path, image_column="d"))
    with pytest.raises(DataError, match="only a manifest has image and label columns"):
        open_source(Data(root, label_column="b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n0.jpg,x,y\n", r"no column holds the image files: got a, b, c\. .*`image_column`"),
        ("id,b,c\n0.jpg,x,y\n", r"no column holds the classes: got id, b, c\. .*`label_column`"),
        (
            "id,label\n0.jpg,a\n1.jpg,Smith, John\n",
            r"line 3: 3 values for 2 columns: got .*John.*\. Put quotes",
        ),
        ("id,a,b\n0.jpg,1,0\n1.jpg,0.5,0\n", r"line 3: the one-hot column a is neither 0 nor 1: got '0.5'"),
    ],
)
def test_tables_that_are_not_understood_are_refused(root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(write(root, text))


@pytest.mark.parametrize(
    ("head", "values", "splits"),
    [
        ("is_valid", ("False", "True"), {"train": 4, "val": 2}),
        ("is_test", ("0", "1"), {"train": 4, "test": 2}),
        ("subset", ("Training", "PublicTest"), {"train": 4, "test": 2}),
        ("data set", ("train", "validation"), {"train": 4, "val": 2}),
        ("Split", ("TRAIN", "dev"), {"train": 4, "val": 2}),
        ("set", ("blue", "green"), {"train": 6}),
    ],
)
def test_columns_of_splits(root: Path, head: str, values: tuple[str, str], splits: dict[str, int]) -> None:
    rows = [f"{index}.jpg,{'ab'[index % 2]},{values[index > 3]}" for index in range(6)]
    source = open_source(write(root, "\n".join([f"file_name,label,{head}", *rows]) + "\n"))
    assert {name: len(split) for name, split in source.splits.items()} == splits
    assert (source.notes == ()) == (head != "set")


def test_test_images_without_a_class_are_skipped(root: Path) -> None:
    text = "file_name,label,split\n0.jpg,a,\n1.jpg,a,\n2.jpg,b,\n3.jpg,b,\n4.jpg,,test\n5.jpg,,test\n"
    source = open_source(write(root, text))
    assert (list(source.splits), source.notes) == (
        ["train"],
        ("4 rows without a split were put into train", "skipped 2 test images without a class"),
    )
    # if other test images have a class, it is reported as missing
    bad = open_source(write(root, text.replace("5.jpg,", "5.jpg,a"))).bad_rows
    assert [(row.split, row.reason, row.lines) for row in bad] == [("test", "missing_label", (6,))]


def test_a_csv_that_is_not_utf8_is_refused_with_its_line(root: Path) -> None:
    path = root / "l1.csv"
    path.write_bytes("file_name,label\n0.jpg,a\n1.jpg,hundä\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"l1\.csv is not UTF-8, line 3: got 'hund\\udce4'\. Save it as UTF-8\."):
        open_source(path)
    path.write_bytes("file_name,label\n0.jpg,a\nä.jpg,a\n".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"line 3: there is no such file: .*the name is not UTF-8: save the table as UTF-8"
    ):
        open_source(path)


@pytest.mark.parametrize("line", ['{"file_name": "1.jpg", "label": "\\ud800"}'])
def test_half_a_character_in_jsonl_is_refused_with_its_line(root: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"list\.jsonl is not UTF-8, line 2"):
        open_source(write(root, '{"file_name": "0.jpg", "label": "a"}\n' + line + "\n", "list.jsonl"))


@pytest.mark.parametrize("numbers", [[0.0, 0.0, 1.0, 1.0], [0, 0, 1, 1]])
def test_class_numbers_of_parquet_are_whole_and_take_their_names(root: Path, numbers: list[float]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pyarrow.table({"file_name": [f"{index}.jpg" for index in range(4)], "label": numbers})
    parquet.write_table(table, root / "list.parquet")
    assert open_source(root / "list.parquet").classes == ("0", "1")
    text = "file_name,label\n0.jpg,0.0\n1.jpg,0.0\n2.jpg,1.0\n3.jpg,1.0\n"
    assert open_source(write(root, text)).classes == ("0", "1")
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), root / "named.parquet")
    assert open_source(root / "named.parquet").classes == ("cat", "dog")


def test_splits_with_other_classes_are_noted(root: Path) -> None:
    text = "file_name,label,split\n0.jpg,a,train\n1.jpg,a,\n2.jpg,b,\n3.jpg,b,train\n4.jpg,a,val\n5.jpg,c,val\n"
    source = open_source(write(root, text))
    assert (source.classes, len(source.splits["val"])) == (("a", "b"), 1)
    assert [note.split(":")[0] for note in source.notes] == [
        "2 rows without a split were put into train",
        "left out 1 image of val whose classes are not in train",
        "val has no images of b, so it gives no metrics for them",
    ]


def test_a_manifest_without_train_is_for_evaluation_only(root: Path) -> None:
    path = write(root, "file_name,label,split\n0.jpg,b,test\n1.jpg,a,test\n2.jpg,a,val\n")
    with pytest.raises(DataError, match=r"the manifest has no training images: .*, splits test, val."):
        open_source(path)
    source = open_source(path, require_train=False, classes=("b", "a", "c"))
    assert source.splits["test"].labels.tolist() == [0, 1]
    assert source.splits["val"].labels.tolist() == [1]


def test_names_that_are_not_utf8_survive(root: Path) -> None:
    name = b"\xff\xfe.jpg"
    (root / os.fsdecode(name)).write_bytes(b"x")
    path = root / "list.csv"
    path.write_bytes(GOOD.encode() + name + b",b\n")
    assert name in [os.fsencode(item) for item in open_source(path).splits["train"].names]
