"""Which folders are accepted, and which problems in them are found early."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vivace.data.describe import notes_of
from vivace.data.layouts.folders import open_folder
from vivace.data.sources import open_source
from vivace.errors import DataError

MakeFolder = Callable[..., Path]


def fill(root: Path, *classes: str, count: int = 3) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}.jpg").write_bytes(b"x")
    return root


def test_a_file_that_cant_be_read_is_refused(as_nobody: Path) -> None:
    root = fill(as_nobody / "data", "a", "b")
    assert open_source(root).classes == ("a", "b")
    (root / "a" / "1.jpg").chmod(0)
    with pytest.raises(DataError, match=r"the file can't be read: .*a/1\.jpg\. Check its permissions\."):
        open_source(root)


def test_a_folder_without_permission_is_refused(as_nobody: Path) -> None:
    root = fill(as_nobody / "data", "a", "b")
    (root / "b").chmod(0)
    try:
        with pytest.raises(
            DataError, match=r"the folder can't be read: .*b \(Permission denied\)\. Check its permissions\."
        ):
            open_source(root)
    finally:
        (root / "b").chmod(0o755)


def test_a_path_below_a_folder_without_permission_is_refused(as_nobody: Path) -> None:
    closed = as_nobody / "closed"
    fill(closed / "data", "a", "b")
    closed.chmod(0)
    try:
        with pytest.raises(DataError, match=r"`data` can't be read: got .*closed/data' \(Permission denied\)"):
            open_source(closed / "data")
    finally:
        closed.chmod(0o755)


@pytest.mark.parametrize("data", ["x" * 5000, "~no-such-user/data"])
def test_a_path_that_is_none_is_refused_on_one_line(data: str) -> None:
    with pytest.raises(DataError, match=r"^`data` can't be read: got .*Check the path and its permissions\.$"):
        open_source(data)


def test_a_pipe_that_would_block_is_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "a", "b")
    os.mkfifo(root / "a" / "pipe.jpg")
    with pytest.raises(DataError, match=r"not a regular file: .*pipe\.jpg"):
        open_source(root)


def test_splits_without_train_are_not_mistaken_for_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "val/a", "val/b", "test/a", "test/b")
    with pytest.raises(DataError, match=r"there is no train folder in .*, only test, val. Put the training images"):
        open_source(root)
    assert list(open_source(root, require_train=False).splits) == ["val", "test"]


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", *(f"{split}/{name}" for split in ("train", "val", "valid") for name in "ab"))
    with pytest.raises(DataError, match="two folders are the split val: 'val' and 'valid'"):
        open_source(root)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert open_source(fill(tmp_path / "vehicles", "bus", "train")).classes == ("bus", "train")


def test_other_folders_beside_the_splits_are_left_alone(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "train/a", "train/b", "scripts")
    source = open_source(root)
    assert (source.classes, list(source.splits)) == (("a", "b"), ["train"])


def test_files_beside_the_class_folders_are_reported(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "train/a", "train/b")
    (root / "train" / "loose.jpg").write_bytes(b"x")
    (root / "train" / ".hidden.jpg").write_bytes(b"x")
    (root / "train" / ".DS_Store").write_bytes(b"x")
    assert sorted(open_source(root).ignored) == ["train/.hidden.jpg", "train/loose.jpg"]


def test_a_class_may_be_a_link_to_elsewhere_in_the_data_set(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "train/a", "shared/b")
    (root / "train" / "b").symlink_to(root / "shared" / "b")
    assert open_source(root).classes == ("a", "b")


@pytest.mark.timeout(20)
def test_a_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "train/a", "train/b")
    (root / "train" / "a" / "up").symlink_to(root)
    with pytest.raises(DataError, match="circular link"):
        open_source(root)


def test_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    source = open_source(fill(tmp_path / "data", "a/x", "a/y", "b"))
    assert source.classes == ("a", "b")
    assert source.splits["train"].labels.tolist() == [0] * 6 + [1] * 3


def test_a_class_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "a", os.fsdecode(b"K\xe4fer"))
    with pytest.raises(DataError, match=r"the name of a class is not UTF-8: 'K\\udce4fer'\. Rename it: give UTF-8\."):
        open_source(root)


@pytest.mark.parametrize("extension", [".pdf", ".eps", ".PS", ".fits", ".svg", ".psd"])
def test_files_of_other_formats_are_skipped_by_extension_and_never_opened(
    tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "data", "a", "b")
    (root / "a" / f"figure{extension}").write_bytes((root / "a" / "0.jpg").read_bytes())
    (root / "a" / "notes.txt").write_text("x")
    opened: list[str] = []
    monkeypatch.setattr("vivace.data.layouts.listing.sniff", lambda head: opened.append("sniffed"))
    source = open_source(root)
    assert sorted(source.ignored) == sorted([f"a/figure{extension}", "a/notes.txt"])
    assert len(source.splits["train"]) == 6
    # only the text was opened
    assert opened == ["sniffed"]
    assert any("skipped" in note and extension.lower() in note for note in notes_of(source))


def test_broken_links_are_skipped_and_counted(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "train/a", "train/b")
    for name in ("x.jpg", "y.png", "folder"):
        (root / "train" / "a" / name).symlink_to(tmp_path / "gone" / name)
    (root / "train" / "a" / "self.jpg").symlink_to(root / "train" / "a" / "self.jpg")
    # beside class folders: a file's name
    (root / "train" / "labels.csv").symlink_to(tmp_path / "gone.csv")
    source = open_source(root)
    assert len(source.splits["train"]) == 6
    assert "skipped 4 broken links: train/a/folder, train/a/self.jpg, train/a/x.jpg, train/a/y.png" in source.notes
    assert source.ignored == ("train/labels.csv",)
    # a missing class is an error, not just a note
    (root / "train" / "c").symlink_to(tmp_path / "gone")
    with pytest.raises(
        DataError, match=r"a broken or circular link, perhaps of a class: .*train/c\. Mount or restore what it leads to"
    ):
        open_source(root)


def test_a_folder_without_images_reports_what_was_skipped(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "0.dcm").write_bytes(b"x")
        (root / name / "1.jpg").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"there are no images in .*scans: .*2 broken links: .*2 of 2 files: 2 \.dcm"):
        open_source(root)


def test_listing_10_000_files_takes_a_fraction_of_a_second(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for index in range(5000):
            (root / name / f"{index:05d}.jpg").touch()

    def seconds(function: Callable[[], int]) -> float:
        """CPU time, which other processes do not affect."""
        began = time.process_time()
        assert function() == 10_000
        return time.process_time() - began

    # less than creating one Path object per file takes
    by_paths = min(seconds(lambda: sum(path.is_file() for path in root.rglob("*"))) for _ in range(3))
    assert min(seconds(lambda: len(open_folder(root).splits["train"])) for _ in range(3)) < by_paths
