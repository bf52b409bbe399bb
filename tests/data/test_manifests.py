"""Manifests: every fault is told with its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
        ("0.jpg,b", "line 6: '0.jpg' stands in line 2 already. Remove one of them."),
        ("./0.jpg,b", "line 6: './0.jpg' stands in line 2 already. Remove one of them."),
        ("page.pdf,b", "line 6: the format is not allowed: 'page.pdf'. Convert it to JPEG or PNG."),
        (",b", "line 6: file_name is empty. Fill it in."),
        ("/nowhere/x.jpg,b", "line 6: there is no such file: '/nowhere/x.jpg'. Mend the name or the line."),
        (".,b", "line 6: the file lies outside the manifest's folder: '.'. Move it in."),
    ],
)
def test_a_fault_is_told_with_its_line(root: Path, line: str, message: str) -> None:
    path = write(root, GOOD + line + "\n")
    with pytest.raises(DataError) as error:
        open_source(path)
    assert str(error.value) == f"{path}, {message}"


def test_a_file_that_cant_be_read_is_told_with_its_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, *_, **__: not path.endswith("2.jpg"))
    with pytest.raises(DataError, match=r"line 4: the file can't be read: '2.jpg'. Check its rights"):
        open_source(write(root, GOOD))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", "line 2: not a JSON object: got '{bad'. Write one {…} a line."),
        ("[1]", "line 2: not a JSON object: got '[1]'. Write one {…} a line."),
        ("[" * 100_000, "line 2: not a JSON object"),
        ('{"file_name": "1.jpg", "label": ["a", "b"]}', "line 2: label is no text: got ['a', 'b']."),
        ('{"file_name": "1.jpg", "label": 0.5}', "line 2: label is no text: got 0.5."),
        ('{"file_name": "1.jpg"}', "line 2: there is no column 'label', only file_name."),
    ],
)
def test_a_wrong_line_of_jsonl_is_told(root: Path, line: str, message: str) -> None:
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


def test_splits_with_other_classes_are_said(root: Path) -> None:
    text = "file_name,label,split\n0.jpg,a,train\n1.jpg,a,\n2.jpg,b,\n3.jpg,b,train\n4.jpg,a,val\n5.jpg,c,val\n"
    source = open_source(write(root, text))
    assert (source.classes, len(source.splits["val"])) == (("a", "b"), 1)
    assert [note.split(":")[0] for note in source.notes] == [
        "1 image of val left out, of classes that are not in train",
        "val has no images of b",
    ]


def test_a_manifest_without_train_is_for_evaluation_only(root: Path) -> None:
    path = write(root, "file_name,label,split\n0.jpg,b,test\n1.jpg,a,test\n2.jpg,a,val\n")
    with pytest.raises(DataError, match=r"the manifest has no training images: .*, splits test, val."):
        open_source(path)
    source = open_source(path, require_train=False, classes=("b", "a", "c"))
    assert source.splits["test"].labels.tolist() == [0, 1]
    assert source.splits["val"].labels.tolist() == [1]


def test_names_that_are_no_utf8_survive(root: Path) -> None:
    name = b"\xff\xfe.jpg"
    (root / os.fsdecode(name)).write_bytes(b"x")
    path = root / "list.csv"
    path.write_bytes(GOOD.encode() + name + b",b\n")
    assert name in [os.fsencode(item) for item in open_source(path).splits["train"].names]
