"""Where the files of a table are searched for."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vivace.data.layouts import finding
from vivace.data.layouts.finding import Finder
from vivace.data.place import Data
from vivace.data.sources import open_source
from vivace.errors import DataError

MakeFolder = Callable[..., Path]


def table_of(root: Path, names: list[str], name: str = "list.csv") -> Path:
    path = root / name
    path.write_text("file_name,label\n" + "".join(f"{file},{'ab'[i % 2]}\n" for i, file in enumerate(names)))
    return path


def images(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def found(table: Path, *names: str) -> list[str]:
    finder = Finder(table, inside_only=False, follow_links=False)
    return [os.path.relpath(finder.find(name, "x"), table.parent) for name in names]


def test_files_are_found_with_extensions_added_and_in_the_first_matching_folder(tmp_path: Path) -> None:
    images(tmp_path / "b" / "in", "x.PNG", "y.jpg")
    images(tmp_path / "a", "x.tif", "z.jpg", "z.png")
    images(tmp_path / "c", "z.jpg", "only.webp")
    table = tmp_path / "list.csv"
    assert found(table, "in/x") == ["b/in/x.PNG"]
    assert found(table, "./in//y/") == ["b/in/y.jpg"]
    assert found(table, "x", "z", "only") == ["a/x.tif", "a/z.jpg", "c/only.webp"]
    # the folder of the last file is tried before the first one
    assert found(table, "only", "z") == ["c/only.webp", "a/z.jpg"]
    assert found(table, "only.webp", "z.jpg") == ["c/only.webp", "c/z.jpg"]
    assert found(table, os.fspath(tmp_path / "c" / "only")) == ["c/only.webp"]
    for name in ("y", "in", "a", "nul\0x", "x" * 5000):
        with pytest.raises(DataError, match="there is no such file"):
            found(table, name)


def test_each_folder_is_listed_once_however_many_lines_a_table_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(40):
        (tmp_path / f"d{index:02}").mkdir()
    images(tmp_path / "d38", "x0.png")
    images(tmp_path / "d39", "x1.PNG")
    listed, looked = [], []
    scan, is_file = finding.scan, finding._is_file
    monkeypatch.setattr(finding, "scan", lambda path: listed.append(path) or scan(path))
    monkeypatch.setattr(finding, "_is_file", lambda path: looked.append(path) or is_file(path))
    names = [f"x{index % 2}" for index in range(500)]
    assert set(found(tmp_path / "list.csv", *names)) == {"d38/x0.png", "d39/x1.PNG"}
    assert len(listed) == 83
    assert len(looked) <= 2 * len(names)


def test_a_search_through_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "d", "0.png", "1.jpg", *map(str, range(2, 20)))
    (tmp_path / "d" / "on").symlink_to(".")
    monkeypatch.setattr(finding, "MAX_LISTED", 100)
    with pytest.raises(DataError, match="searched over 100 files for those that are not where list"):
        found(tmp_path / "list.csv", *(f"{'on/' * index}{index % 2}" for index in range(20)))


def test_folders_that_cant_be_read_and_links_to_themselves_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "d", "x.png")
    for folder in (tmp_path, tmp_path / "d"):
        (folder / "self").symlink_to("self")
    images(tmp_path / "closed", "x.png")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, *a, **k: "closed" not in str(path) and access(path, *a, **k))
    assert found(tmp_path / "list.csv", "x") == ["d/x.png"]


@pytest.mark.parametrize("kind", ["folder", "file", "found"])
@pytest.mark.parametrize("table", ["list.csv", "metadata.csv"])
def test_links_lead_out_of_the_data_set_only_if_asked(tmp_path: Path, kind: str, table: str) -> None:
    secret = images(tmp_path / "secret", "0.png", "1.png", "2.png", "3.png")
    root = images(tmp_path / "data")
    inner = root / "img" / "deep"
    if kind == "folder":
        inner.parent.mkdir()
        inner.symlink_to(secret)
    else:
        inner.mkdir(parents=True)
        for file in secret.iterdir():
            (inner / file.name).symlink_to(file)
    names = [f"deep/{index}" if kind == "found" else f"img/deep/{index}.png" for index in range(4)]
    path = table_of(root, names, table)
    for data in [path] + [root] * (table == "metadata.csv" and kind != "found"):
        with pytest.raises(
            DataError, match=r"a link leads out of the data set: .* Follow it by `follow_links`"
        ) as told:
            open_source(data)
        assert f"{path}, line 2: " in str(told.value) or data == root
        assert len(open_source(Data(data, follow_links=True)).splits["train"]) == 4


def test_links_within_the_data_set_are_followed(tmp_path: Path) -> None:
    root = images(tmp_path / "data")
    images(root / "there", "0.png", "1.png", "2.png", "3.png")
    (root / "here").symlink_to("there")
    (tmp_path / "other").symlink_to(root)
    table_of(root, [f"here/{index}.png" for index in range(4)])
    assert len(open_source(tmp_path / "other" / "list.csv").splits["train"]) == 4


def test_only_a_table_that_is_named_may_name_files_anywhere(tmp_path: Path) -> None:
    secret = images(tmp_path / "secret", "0.png", "1.png", "2.png", "3.png")
    root = images(tmp_path / "data")
    path = table_of(root, [os.fspath(secret / f"{index}.png") for index in range(4)], "metadata.csv")
    assert len(open_source(path).splits["train"]) == 4
    with pytest.raises(DataError, match="line 2: the file lies outside the manifest's folder"):
        open_source(root)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(path, "data/metadata.csv")
    with pytest.raises(DataError, match="line 2: the file lies outside the manifest's folder"):
        open_source(tmp_path / "data.zip")


def test_a_table_of_labels_that_lies_elsewhere_is_not_read(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = images(tmp_path / "data", "0.png", "1.png", "2.png", "3.png")
    path = table_of(images(tmp_path / "secret"), [f"{index}.png" for index in range(4)])
    (root / "metadata.csv").symlink_to(path)
    with pytest.raises(DataError, match=r"a link leads out of the data set: .*metadata\.csv"):
        open_source(root)
    assert len(open_source(Data(root, follow_links=True)).splits["train"]) == 4
    shutil.rmtree(root)
