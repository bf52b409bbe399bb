"""Layouts of splits; a split is never mistaken for a class."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vivace.data.describe import notes_of, report, summary
from vivace.data.layouts.splitnames import split_of
from vivace.data.place import Data
from vivace.data.sources import open_source
from vivace.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n"


def fill(root: Path, *folders: str, count: int = 3) -> Path:
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / name / f"{index}.png").write_bytes(PNG + name.encode())
    return root


def sizes(root: Path) -> dict[str, int]:
    return {name: len(split) for name, split in open_source(root).splits.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((word, "train") for word in ("train", "TRAIN", "seg_train", "train_png", "Training Data", "trainset")),
        *((word, "train") for word in ("train2017", "asl_alphabet_train", "trainImages", "train-00000-of-00002")),
        *((word, "val") for word in ("val", "valid", "validation", "dev", "eval", "my-validation-set", "val2017")),
        *((word, "test") for word in ("test", "seg_test", "test_images", "holdout", "hold-out", "TestSet", "testing")),
        *((word, None) for word in ("trainer", "strain", "contest", "evaluate_me", "valley", "train_test", "device")),
    ],
)  # fmt: skip
def test_a_split_is_recognized_by_a_word_in_its_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        # Kaggle's Intel images: a folder of the same name inside, and unlabelled ones to predict
        (("seg_train/seg_train/{c}", "seg_test/seg_test/{c}", "seg_pred/seg_pred"), ("train", "test")),
        (("train_png/{c}", "test_png/{c}"), ("train", "test")),
        (("train/{c}", "dev/{c}"), ("train", "val")),
        (("Training/{c}", "eval/{c}", "holdout/{c}"), ("train", "val", "test")),
        (("dataset/dataset/train/{c}", "dataset/dataset/valid/{c}"), ("train", "val")),
        (("train/images/{c}", "test/images/{c}"), ("train", "test")),
        (("training-data/train/{c}", "training-data/test/{c}"), ("train", "test")),
        (("pets/train/{c}", "pets/test"), ("train",)),
        (("train/{c}", "test/unknown"), ("train",)),
        # class folders first
        (("{c}/train", "{c}/test"), ("train", "test")),
    ],
)
def test_layouts_of_splits(tmp_path: Path, folders: tuple[str, ...], splits: tuple[str, ...]) -> None:
    root = tmp_path / "data"
    for pattern in folders:
        fill(root, *sorted({pattern.format(c=name) for name in ("bird", "cat", "dog")}))
    source = open_source(root)
    assert source.classes == ("bird", "cat", "dog")
    assert {name: len(split) for name, split in source.splits.items()} == dict.fromkeys(splits, 9)


@pytest.mark.parametrize(
    "classes", [("bus", "train"), ("freight train", "tram"), ("test tube", "flask"), ("test tube", "test strip")]
)
def test_classes_with_the_word_in_their_name_stay_classes(tmp_path: Path, classes: tuple[str, str]) -> None:
    root = fill(tmp_path / "data", *classes)
    assert open_source(root).classes == tuple(sorted(classes))


@pytest.mark.parametrize("names", [("train", "test"), ("train_images", "val_images"), ("seg_train", "seg_test", "dev")])
def test_flat_splits_are_refused_and_never_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = fill(tmp_path / "data", *names)
    with pytest.raises(
        DataError, match=r"the folders look like splits and hold no class folders: .*CSV of their labels"
    ):
        open_source(root)
    (root / "train.csv").write_text("id,label\n")
    with pytest.raises(DataError, match=r"give the table of labels as `data`: .*train\.csv"):
        open_source(root)


@pytest.mark.parametrize("name", ["{stem}", "{stem}.png", "train/{stem}.png", "img\\{stem}.png"])
def test_only_tables_of_the_training_images_are_named(tmp_path: Path, name: str) -> None:
    root = fill(tmp_path / "data", "train", "test")
    for number, image in enumerate(sorted((root / "test").iterdir())):
        image.rename(image.with_name(f"t_{number}.png"))
    stem = min(path.stem for path in (root / "train").iterdir())
    (root / "labels.csv").write_text(f"id,label\n{name.format(stem=stem)},cat\n")
    (root / "sample_submission.csv").write_text("id,label\nt_0.png,cat\n")
    (root / "test.csv").write_text("id\nt_0.png\n")
    with pytest.raises(DataError, match=r"give the table of labels as `data`: labels\.csv\.$"):
        open_source(root)
    # no table names an image of train/, but a sample submission holds no labels in any case
    (root / "labels.csv").write_text("id,label\n")
    with pytest.raises(DataError, match=r"give the table of labels as `data`: labels\.csv, test\.csv\.$"):
        open_source(root)


def test_tables_inside_of_the_splits_are_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "train", "test")
    (root / "train" / "labels.csv").write_text("file_name,label\n0.jpg,a\n")
    with pytest.raises(DataError, match=r"or give the table of labels as `data`: train/labels\.csv\."):
        open_source(root)


def test_splits_within_a_split_are_not_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "train/train", "train/val", "test/train", "test/val")
    with pytest.raises(DataError, match="the folders look like splits and hold no class folders: train, val"):
        open_source(root)


def test_missing_images_are_reported_with_a_bundle_too(tmp_path: Path) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="there are no images in"):
        open_source(tmp_path / "data", require_train=False, classes=("cat", "dog"))


def test_an_unknown_folder_with_the_same_classes_is_noted(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "train/a", "train/b", "test/a", "test/b", "extra/a", "extra/b", "scripts")
    assert sizes(root) == {"train": 6, "test": 6}
    notes = " ".join(open_source(root).notes)
    assert "skipped extra/, which has the same class folders" in notes
    assert "skipped scripts/" in notes


@pytest.mark.parametrize("others", [("extra/a", "extra/b"), ("bus", "tram")])
def test_a_folder_that_may_be_a_class_or_a_split_is_refused(tmp_path: Path, others: tuple[str, ...]) -> None:
    root = fill(tmp_path / "data", "train/a", "train/b", *others)
    with pytest.raises(DataError, match="it is unclear whether 'train' is a split or a class"):
        open_source(root)


def test_unlabelled_test_images_are_skipped_and_noted(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "train/a", "train/b", "test")
    assert sizes(root) == {"train": 6}
    assert open_source(root).notes == ("skipped test/, which has no labels (no class folders of train)",)


def test_a_wrapper_with_files_beside_it_is_looked_through(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "PetImages/Cat", "PetImages/Dog")
    (root / "readme[1].txt").write_text("x")
    (root / "licence.pdf").write_text("x")
    (root / "__MACOSX" / "PetImages").mkdir(parents=True)
    assert open_source(root).classes == ("Cat", "Dog")


def test_a_class_of_a_bundle_is_not_a_wrapper(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "cat/2019", "cat/2020")
    assert open_source(root, require_train=False, classes=("cat", "dog")).splits["train"].labels.tolist() == [0] * 6
    root = fill(tmp_path / "more", "test/cat/2019", "test/cat/2020")
    assert open_source(root, require_train=False, classes=("cat", "dog")).splits["test"].labels.tolist() == [0] * 6


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir",
        ".thumbnails",
        "#recycle",
        "__MACOSX",
        "lost+found",
        "$RECYCLE.BIN",
        "System Volume Information",
        ".ipynb_checkpoints",
    ],
)
def test_folders_of_the_system_hold_no_samples(tmp_path: Path, name: str) -> None:
    root = fill(tmp_path / "data", "a", "b", name, f"a/{name}", f"a/x/{name}")
    source = open_source(root)
    assert (source.classes, sizes(root)) == (("a", "b"), {"train": 6})
    assert name in notes_of(source)[-1]


def test_images_are_found_by_content_and_skipped_files_are_counted_by_kind(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "a", "b")
    for index in range(4):
        (root / "a" / f"IMG{index}").write_bytes(PNG)
        (root / "a" / f"x{index}.heic2").write_bytes(b"no image")
        (root / "b" / f"notes{index}").write_bytes(b"text")
        (root / "b" / f"{index}.txt").write_bytes(b"text")
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    source = open_source(root)
    assert len(source.splits["train"]) == 10
    assert notes_of(source) == ["skipped 12 of 22 files: 4 .heic2, 4 without extension, 4 .txt"]


def test_heic_without_its_library_is_skipped_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "data", "a", "b")
    (root / "a" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\0\x08meta")
    monkeypatch.setattr("vivace.data.layouts.listing.heif_is_read", lambda: False)
    source = open_source(root)
    assert len(source.splits["train"]) == 6
    assert notes_of(source) == ["skipped 1 of 7 files: 1 .heic; to read HEIC: pip install 'vivace[heic]'"]
    monkeypatch.setattr("vivace.data.layouts.listing.heif_is_read", lambda: True)
    assert len(open_source(root).splits["train"]) == 7
    (root / "a" / "IMG_2.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(range(128, 227)))
    source = open_source(root)
    assert (len(source.splits["train"]), notes_of(source)) == (7, ["skipped 1 of 8 files: 1 .heic"])


def test_the_summary_names_classes_splits_and_extremes(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "train/A", "train/B", "test/A", "test/B", count=20)
    fill(root, "train/B", count=40)
    source = open_source(root)
    assert summary(source, 0.1) == (
        "2 classes (A … B), 54 train, 6 val (held out), 40 test; smallest class A: 20, largest B: 40"
    )


def test_a_quiet_report_has_notes_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fill(tmp_path / "data", "A", "B", count=20)
    report(open_source(root), quiet=True)
    assert capsys.readouterr().err == ""
    report(open_source(root))
    assert capsys.readouterr().err == "data: 2 classes (A … B), 40 train; 20 of each class\n"
    (root / "A" / "notes.txt").write_text("x")
    report(open_source(root), quiet=True)
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["data", "warning"]


@pytest.mark.parametrize("inside", [True, False])
def test_links_are_followed_inside_and_outside_only_if_asked(tmp_path: Path, inside: bool) -> None:
    store = fill(tmp_path / ("data/store" if inside else "store"), "cat", "dog")
    root = tmp_path / "data"
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        for path in (store / name).iterdir():
            (root / "train" / name / path.name).symlink_to(path)
    if inside:
        with pytest.raises(DataError, match="it is unclear whether 'train' is a split or a class"):
            open_source(root)
        store.rename(root / "train" / ".store")
        return
    with pytest.raises(DataError, match=r"a link leads out of the data set: .* Follow it by `follow_links`"):
        open_source(root)
    assert len(open_source(Data(root, follow_links=True)).splits["train"]) == 6
    (root / "val").symlink_to(store)
    assert len(open_source(Data(root, follow_links=True)).splits["val"]) == 6


@pytest.mark.timeout(20)
def test_links_to_links_are_read_once(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "a", "b")
    for level in range(40):
        (root / "a" / f"l{level}").mkdir()
    for level in range(39):
        for name in ("x", "y"):
            (root / "a" / f"l{level}" / name).symlink_to(root / "a" / f"l{level + 1}")
    assert sizes(root) == {"train": 6}


@pytest.mark.timeout(20)
def test_folders_deeper_than_the_recursion_limit(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "a", "b")
    folder = os.fspath(root / "a")
    for _ in range(1500):
        folder += "/d"
        os.mkdir(folder)  # noqa: PTH102
    try:
        assert sizes(root) == {"train": 6}
    finally:
        # shutil.rmtree recurses
        subprocess.run(["rm", "-rf", root], check=True)
