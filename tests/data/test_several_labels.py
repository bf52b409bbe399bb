"""Several labels an image in objects: rows of 0 and 1, lists of names or numbers; what is decided and what refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vivace
from own import Pairs
from vivace.cli import main
from vivace.data.labelsets import combination_names
from vivace.data.place import Data
from vivace.data.sources import open_source
from vivace.data.splits import DataSource
from vivace.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
HOT = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]] * 3)
SETS = ["a", "a; b", "c", "∅"] * 3
NAMES = ["a", "b", "c"]
LISTS = [["a"], ["a", "b"], ["c"], []] * 3
NUMBERS = [[0], [0, 1], [2], []] * 3


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def sets_of(source: DataSource, split: str = "train") -> list[str]:
    assert source.label_sets is not None
    names = combination_names(source.label_sets, source.classes)
    return [names[label] for label in source.splits[split].labels]


def items(labels: Any, classes: list[str] | None = None) -> Pairs:
    return Pairs(list(zip(IMAGES, labels, strict=True)), classes)


OBJECTS: dict[str, Callable[[], Any]] = {
    "arrays, lists": lambda: (IMAGES, LISTS),
    "items, lists": lambda: items(LISTS),
    "items, tuples": lambda: items([tuple(names) for names in LISTS]),
    "items, sets": lambda: items([set(names) for names in LISTS]),
    "items, numbers": lambda: items(NUMBERS, NAMES),
    "items, numbers in tensors": lambda: items([torch.tensor(row + row).long() for row in NUMBERS], NAMES),
    "items, rows": lambda: items(HOT, NAMES),
    "items, rows of bool": lambda: items(HOT.astype(bool), NAMES),
    "items, rows in float tensors": lambda: items(torch.from_numpy(HOT).float(), NAMES),
    "items, rows in lists": lambda: items(HOT.tolist(), NAMES),
}


@pytest.mark.parametrize("form", OBJECTS)
def test_all_forms_give_the_same_sets(form: str) -> None:
    source = open_source(OBJECTS[form]())
    assert source.classes == ("a", "b", "c")
    assert sets_of(source) == SETS
    assert any(note.startswith("several labels an image") and "3 images without any" in note for note in source.notes)


def test_rows_without_names_are_named_by_number_in_their_order() -> None:
    hot = np.zeros((12, 11), dtype=int)
    hot[:, 10] = hot[::2, 2] = 1
    for data in ((IMAGES, hot), (IMAGES, torch.from_numpy(hot)), items(hot)):
        source = open_source(data)
        # what no image has is left out
        assert source.classes == ("2", "10")
        assert sets_of(source) == ["10; 2", "10"] * 6
    assert open_source((IMAGES, hot)).notes[0] == "several labels an image: rows of 11 values, 0 or 1"


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_have_sets_in_lists_in_text_and_in_columns(library: str) -> None:
    make = pytest.importorskip(library).DataFrame
    images = [png(image) for image in IMAGES]
    lists = make({"image": images, "label": LISTS})
    assert sets_of(open_source(lists)) == SETS
    text = make({"image": images, "label": ["a", "a; b", "b", "c", "c; a", "a"] * 2})
    assert sets_of(open_source(text)) == ["a", "a; b", "b", "c", "a; c", "a"] * 2
    assert open_source(Data(text, multi_label=False)).label_sets is None
    columns = make({"image": images, **{name: HOT[:, index] for index, name in enumerate(NAMES)}})
    assert sets_of(open_source(columns)) == SETS


def test_hugging_faces_lists_of_classes_are_sets() -> None:
    datasets = pytest.importorskip("datasets")
    label = datasets.Sequence(datasets.ClassLabel(names=NAMES))
    features = datasets.Features({"image": datasets.Image(), "labels": label})
    rows = {"image": list(IMAGES), "labels": NUMBERS}
    source = open_source(datasets.Dataset.from_dict(rows, features=features))
    assert source.classes == ("a", "b", "c")
    assert sets_of(source) == SETS


def test_one_class_an_image_is_a_set_of_one_where_that_is_asked_for() -> None:
    labels = np.arange(12) % 3
    assert sets_of(open_source(Data((IMAGES, labels), multi_label=True))) == ["0", "1", "2"] * 4
    assert sets_of(open_source(Data((IMAGES, np.eye(3)[labels]), multi_label=True))) == ["0", "1", "2"] * 4
    # lists of one name each are classes, as in a table
    assert open_source((IMAGES, [[name] for name in "abc" * 4])).label_sets is None


def test_splits_have_the_same_labels() -> None:
    data = {"train": items(LISTS), "val": items([["a"], ["a", "d"], ["b"]] * 4)}
    source = open_source(data)
    assert sets_of(source, "val") == ["a", "a", "b"] * 4
    assert any("left out 1 label of val not in train: d" in note for note in source.notes)


REFUSED: dict[str, tuple[Any, str]] = {
    "one-hot rows": (
        (IMAGES, np.eye(3)[np.arange(12) % 3]),
        r"a single 1: got \[12, 3\]\. .* labels\.argmax\(1\); of s",
    ),
    "rows of other values": ((IMAGES, HOT * 0.5), r"the label is a float: got 0\.5"),
    "NaN": ((IMAGES, np.where(HOT == 1, np.nan, 0)), r"label 0: a label is no number and no text: got nan"),
    "rows of another length": (items(HOT, ["a", "b"]), r"got 3 values for 2 classes"),
    "numbers and names": (items([["a", 1]] * 12), r"some labels are numbers, some are text"),
    "a name that is no class": (items([["a", "z"]] * 12, NAMES), r"label 'z' .* none of its classes"),
    "lists of lists": (items([[["a"]], ["b"]] * 6), r"a label is no number and no text: got \['a'\]"),
    "said to be one": (Data((IMAGES, HOT), multi_label=False), r"labels are no list: got an array \[12, 3\]"),
    "said to be one, items": (Data(items(LISTS), multi_label=False), r"neither a whole number nor a text: got a list"),
    "none at all": ((IMAGES, HOT * 0), r"too few labels|no label|at least 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_can_not_be_used_are_refused(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        open_source(data)


def test_an_audit_can_be_told_how_labels_are_read(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    cells = ["big cat; dog", "cow", "cow", "big cat; dog"] * 3
    rows = "".join(f"{number}.png,{cell}\n" for number, cell in enumerate(cells))
    (tmp_path / "table.csv").write_text(f"file,label\n{rows}")
    table = str(tmp_path / "table.csv")
    assert main(["audit", table]) == 0
    assert "2 classes" in capsys.readouterr().err
    assert main(["audit", table, "--set", "data.multi_label=true"]) == 0
    assert "3 labels" in capsys.readouterr().err
    assert vivace.audit(table, overrides={"data.multi_label": True}, quiet=True).refusal is None
    assert main(["audit", table, "--set", "optimizer.lr=1"]) == 2
    assert "says nothing about images: got 'optimizer.lr'" in capsys.readouterr().err
