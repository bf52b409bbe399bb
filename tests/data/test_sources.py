"""What DATA may be, and what is refused before work begins."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vivace.data.caching.cache import open_cache
from vivace.data.holdout import hold_out
from vivace.data.layouts import listing
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import DataError

MakeFolder = Callable[..., Path]


def write_manifest(root: Path, lines: list[dict[str, str]], kind: str) -> Path:
    path = root / f"list.{kind}"
    if kind == "csv":
        columns = list(lines[0])
        rows = [",".join(columns), *(",".join(line[column] for column in columns) for line in lines)]
        path.write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), path)
    return path


def rows_of(root: Path, split: bool = True) -> list[dict[str, str]]:
    rows = []
    for path in sorted(root.rglob("*.png")):
        row = {"file_name": str(path.relative_to(root)), "label": path.parent.name}
        if split:
            row["split"] = "validation" if path.stem == "000" else "train"
        rows.append(row)
    return rows


def test_a_folder_of_class_folders(make_folder: MakeFolder) -> None:
    source = open_source(make_folder())
    assert source.classes == ("blue", "green", "red")
    assert list(source.splits) == ["train"]
    split = source.splits["train"]
    assert len(split) == 24
    assert split.names[0] == "blue/000.png"
    assert split.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_folder_of_splits(make_folder: MakeFolder, name: str) -> None:
    source = open_source(make_folder(splits=("train", name, "test")))
    assert list(source.splits) == ["train", "val", "test"]
    assert source.splits["val"].names[0] == f"{name}/blue/000.png"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest(make_folder: MakeFolder, kind: str) -> None:
    root = make_folder()
    source = open_source(write_manifest(root, rows_of(root), kind))
    assert source.classes == ("blue", "green", "red")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 21, "val": 3}
    without = open_source(write_manifest(root, rows_of(root, split=False), kind))
    assert {name: len(split) for name, split in without.splits.items()} == {"train": 24}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "../outside.png"}, "line 2: the file lies outside the manifest's folder"),
        ({"split": "trian"}, "line 2: the split is unknown: got 'trian'. Did you mean 'train'"),
    ],
)
def test_a_wrong_line_of_a_manifest_is_named(make_folder: MakeFolder, change: dict[str, str], message: str) -> None:
    root = make_folder()
    rows = rows_of(root)
    rows[0] |= change
    with pytest.raises(DataError) as error:
        open_source(write_manifest(root, rows, "csv"))
    assert message in str(error.value)


def test_an_unknown_name_gives_near_ones() -> None:
    with pytest.raises(DataError, match=r"got 'cifar-10', which is not a file.* Did you mean 'cifar10'"):
        open_source("cifar-10")


def test_a_folder_beside_the_misspelt_one_comes_before_the_names_of_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("foods", "other", ".foo"):
        (tmp_path / name).mkdir()
    (tmp_path / "food.txt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"Did you mean 'foods' or 'food101'\?"):
        open_source("food")
    with pytest.raises(DataError, match=rf"Did you mean '{tmp_path}/foods'\?"):
        open_source(tmp_path / "food")


def test_a_file_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.docx").write_text("")
    with pytest.raises(DataError, match="`data` is not a data set"):
        open_source(tmp_path / "x.docx")


def test_an_empty_class_folder_is_skipped_and_noted(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "yellow").mkdir()
    source = open_source(root)
    assert source.classes == ("blue", "green", "red")
    assert source.notes == ("skipped 1 empty class folder: yellow",)


def test_one_class_is_refused_with_the_minimum(make_folder: MakeFolder) -> None:
    root = make_folder()
    for name in ("blue", "green"):
        for path in (root / name).iterdir():
            path.unlink()
        (root / name).rmdir()
    with pytest.raises(DataError, match=r"there is only one class: 'red'\. A classifier needs at least 2"):
        open_source(root)


def test_one_image_in_a_class_is_refused_with_the_minimum(make_folder: MakeFolder) -> None:
    root = make_folder(per_class=1)
    with pytest.raises(DataError, match="'blue' has 1, at least 2 are needed"):
        open_source(root)


def test_missing_and_extra_classes_of_a_split_are_noted(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "val"))
    (root / "val" / "red").rename(root / "val" / "pink")
    source = open_source(root)
    assert source.classes == ("blue", "green", "red")
    assert source.splits["val"].labels.tolist() == [0] * 8 + [1] * 8
    assert source.notes == (
        "left out 8 images of val whose classes are not in train: pink",
        "val has no images of red, so it gives no metrics for them",
    )


def test_splits_without_a_common_class_are_refused(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "val"))
    for name in ("red", "green", "blue"):
        (root / "val" / name).rename(root / "val" / f"{name}ish")
    with pytest.raises(DataError, match=r"train and val have no class in common: train has blue.*val has blueish"):
        open_source(root)


def test_a_class_of_one_training_image_is_left_out_of_every_split(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "test"))
    for path in sorted((root / "train" / "red").iterdir())[1:]:
        path.unlink()
    source = open_source(root)
    assert source.classes == ("blue", "green")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 16, "test": 16}
    assert source.notes[0] == "left out 1 class with one training image: red"


def test_a_loop_of_links_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "red" / "again").symlink_to(root / "red")
    with pytest.raises(DataError, match="circular link"):
        open_source(root)


@pytest.mark.parametrize("place", ["red/outside.png", "outside"])
def test_a_link_out_of_the_data_set_is_refused(make_folder: MakeFolder, tmp_path: Path, place: str) -> None:
    root = make_folder()
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "x.png").write_bytes(b"")
    (root / place).symlink_to(outside / "x.png" if place.endswith("png") else outside)
    with pytest.raises(DataError, match="a link leads out of the data set"):
        open_source(root)


def test_any_file_name_survives(make_folder: MakeFolder) -> None:
    root = make_folder()
    names = [
        b"line\nbreak.png",
        b"no-utf8-\xff\xfe.png",
        "日本語 é.png".encode(),
        unicodedata.normalize("NFD", "é.png").encode(),
    ]
    for index, name in enumerate(names):
        (root / "red" / f"{index:03d}.png").rename(root / "red" / os.fsdecode(name))
    source = open_source(root)
    cache = open_cache(source, Preprocess(size=8, store_size=8))
    stored = {os.fsencode(name) for name in cache.splits["train"].names}
    assert {b"red/" + name for name in names} <= stored


def test_class_names_in_other_unicode_forms_are_one_class(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "val"))
    (root / "train" / "red").rename(root / "train" / unicodedata.normalize("NFC", "café"))
    (root / "val" / "red").rename(root / "val" / unicodedata.normalize("NFD", "café"))
    assert "café" in open_source(root).classes


def test_classes_that_differ_by_case_are_two_and_noted(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "green").rename(root / "Red")
    source = open_source(root)
    assert source.classes == ("Red", "blue", "red")
    assert source.notes == ("classes that differ only in case: Red and red",)


def test_letters_that_fold_alike_are_two_classes_without_a_note(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "green").rename(root / "Strasse")
    (root / "blue").rename(root / "Straße")
    assert open_source(root).notes == ()


def test_a_folder_that_cant_be_read_is_refused(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder()
    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("red"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(listing.os, "scandir", scandir)
    with pytest.raises(DataError, match=r"the folder can't be read: .*red \(Permission denied\)"):
        open_source(root)


def test_other_files_are_skipped_and_reported(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "red" / "notes.txt").write_text("")
    (root / "red" / ".DS_Store").write_text("")
    assert open_source(root).ignored == ("red/notes.txt",)


def test_the_classes_of_a_bundle_number_the_labels(make_folder: MakeFolder) -> None:
    root = make_folder()
    source = open_source(root, require_train=False, classes=("red", "green", "blue", "other"))
    assert source.classes == ("red", "green", "blue", "other")
    # images without a split are train
    assert list(source.splits) == ["train"]
    assert source.splits["train"].labels.tolist() == [2] * 8 + [1] * 8 + [0] * 8
    source = open_source(root, require_train=False, classes=("red", "green"))
    assert source.splits["train"].labels.tolist() == [1] * 8 + [0] * 8
    assert source.notes == ("left out 8 images whose classes are not in the bundle: blue",)
    with pytest.raises(DataError, match="the data and the bundle have no class in common: got blue, green, red"):
        open_source(root, require_train=False, classes=("oak", "beech"))


def test_classes_that_differ_from_a_bundles_by_case_are_called_so(make_folder: MakeFolder) -> None:
    root = make_folder()
    source = open_source(root, require_train=False, classes=("Red", "green", "blue"))
    assert source.notes == (
        "left out 8 images whose classes are not in the bundle: red (differs only in case from Red: rename one of "
        "them)",
    )
    with pytest.raises(DataError) as error:
        open_source(root, require_train=False, classes=("RED", "Green", "oak"))
    assert str(error.value) == (
        "the data and the bundle have no class in common: got blue, green, red (differs only in case from Green, RED: "
        "rename one of them). Give classes of the bundle: RED, Green, oak."
    )


def test_classes_of_a_split_that_differ_by_case_are_called_so(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "val"))
    (root / "val" / "red").rename(root / "val" / "Red")
    assert any("not in train: Red (differs only in case from red: rename" in note for note in open_source(root).notes)


def test_digits_need_no_download() -> None:
    source = open_source("digits")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 1438, "test": 359}
    assert source.channels == 1
    assert source.splits["train"].arrays is not None
    assert source.splits["train"].arrays.max() == 255


def test_holding_out_is_stratified_and_disjoint() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    kept, held = hold_out(labels, np.arange(160), 0.2, seed=3)
    assert np.bincount(labels[held]).tolist() == [20, 10, 2]
    assert sorted([*kept, *held]) == list(range(160))
    again = hold_out(labels, np.arange(160), 0.2, seed=3)
    np.testing.assert_array_equal(again[1], held)
    assert not np.array_equal(hold_out(labels, np.arange(160), 0.2, seed=4)[1], held)


def test_copies_stay_on_one_side() -> None:
    labels = np.zeros(60, dtype=int)
    groups = np.repeat(np.arange(20), 3)
    for seed in range(20):
        kept, held = hold_out(labels, groups, 0.3, seed=seed)
        assert not set(groups[kept]) & set(groups[held])
        assert len(held) in range(15, 22)


def test_every_class_keeps_an_image_on_each_side() -> None:
    labels = np.array([0, 0, 1, 1])
    kept, held = hold_out(labels, np.arange(4), 0.01)
    assert set(labels[kept]) == set(labels[held]) == {0, 1}
