"""Subfolders with repeated names: pieces of a data set are not classes, and parts of classes are not either."""

from __future__ import annotations

from pathlib import Path

import pytest

from vivace.data.sources import open_source
from vivace.errors import DataError


def fill(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for index in range(3):
            (root / folder / f"{index}.jpg").write_bytes(b"x")
    return root


def grid(*outer: str, inner: tuple[str, ...] = ("cat", "dog")) -> list[str]:
    return [f"{name}/{label}" for name in outer for label in inner]


@pytest.mark.parametrize(
    "folders",
    [
        grid("fold0", "fold1", "fold2"),
        grid("Fold_1", "Fold_2"),
        grid("split-1", "split-2"),
        grid("part a", "part b"),
        grid("fold1", "fold2", "test"),
        [*grid("set1", "set2"), "set2/bird"],
        grid("train/fold1", "train/fold2", "test/fold1", "test/fold2"),
        grid("a/train", "b/train"),
        grid("a/train", "b/train", "a/test", "b/test"),
    ],
)
def test_pieces_of_a_data_set_are_not_mistaken_for_classes(tmp_path: Path, folders: list[str]) -> None:
    root = fill(tmp_path / "data", *folders)
    with pytest.raises(
        DataError, match=r"it is unclear which folders are the classes: .* each hold cat, dog\. If the inner"
    ) as error:
        open_source(root)
    assert "give one outer folder as `data`" in str(error.value)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (("cat", "dog"), ("2021", "2022")),
        (("cat", "dog"), ("front", "back")),
        (("party", "runs"), ("a", "b")),
        (("0", "1"), ("camA", "camB")),
    ],
)
def test_parts_of_classes_are_not_classes_and_it_is_noted(
    tmp_path: Path, outer: tuple[str, ...], inner: tuple[str, ...]
) -> None:
    source = open_source(fill(tmp_path / "data", *grid(*outer, inner=inner)))
    assert (source.classes, len(source.splits["train"])) == (tuple(sorted(outer)), 12)
    assert source.notes == (
        f"the outer folders were taken as the classes ({', '.join(sorted(outer))}), not their subfolders, which "
        f"are the same in each ({', '.join(sorted(inner))})",
    )


@pytest.mark.parametrize("inner", [("images",), ("train",), ("train", "test")])
def test_wrappers_and_splits_of_classes_need_no_note(tmp_path: Path, inner: tuple[str, ...]) -> None:
    source = open_source(fill(tmp_path / "data", *grid("cat", "dog", inner=inner)))
    assert source.classes == ("cat", "dog")
    assert not any("outer" in note for note in source.notes)


def test_classes_of_a_bundle_and_folders_with_images_of_their_own_are_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", *grid("part1", "part2", inner=("front", "back")))
    assert open_source(root, require_train=False, classes=("part1", "part2")).classes == ("part1", "part2")
    (root / "part1" / "0.jpg").write_bytes(b"x")
    assert open_source(root).classes == ("part1", "part2")


def test_splits_without_train_are_still_splits(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", *grid("val", "test"))
    assert list(open_source(root, require_train=False, classes=("cat", "dog")).splits) == ["val", "test"]
