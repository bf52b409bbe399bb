"""Archives are unpacked safely, or not at all."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vivace.data import archives
from vivace.data.archives import unpack
from vivace.data.place import Data
from vivace.data.sources import open_source
from vivace.errors import ArchiveError, DataError

MakeFolder = Callable[..., Path]


def pack(root: Path, path: Path) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(root.rglob("*")):
                archive.write(file, file.relative_to(root.parent))
    else:
        mode = {".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2", ".tar": "w"}[path.suffix]
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            tar.add(root, root.name)
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2"])
def test_an_archive_gives_what_its_folder_gives(make_folder: MakeFolder, tmp_path: Path, suffix: str) -> None:
    root = make_folder(splits=("train", "val"))
    source = open_source(pack(root, tmp_path / f"packed{suffix}"))
    plain = open_source(root)
    assert source.classes == plain.classes
    assert {name: split.names for name, split in source.splits.items()} == {
        name: split.names for name, split in plain.splits.items()
    }


def test_a_second_opening_does_not_unpack(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(make_folder(), tmp_path / "packed.zip")
    open_source(path)

    def refuse(*_: object) -> None:
        raise AssertionError("unpacked again")

    monkeypatch.setattr(archives, "unpack", refuse)
    open_source(path)


def test_a_manifest_in_an_archive_is_found_and_kept_inside(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder()
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    (root / "metadata.csv").write_text("file_name,label\n" + "\n".join(rows))
    assert len(open_source(pack(root, tmp_path / "packed.zip")).splits["train"]) == 24
    (root / "metadata.csv").write_text("file_name,label\n/etc/hostname,red\n" + "\n".join(rows))
    with pytest.raises(Exception, match="the file lies outside the manifest's folder"):
        open_source(pack(root, tmp_path / "evil.zip"))


def test_columns_of_a_manifest_in_an_archive_may_be_named(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder()
    without = pack(root, tmp_path / "folders.zip")
    rows = [f"{path.relative_to(root)},{path.parent.name},x" for path in sorted(root.rglob("*.png"))]
    (root / "list.csv").write_text("\n".join(["a,b,c", *rows]) + "\n")
    archive = pack(root, tmp_path / "colours.zip")
    assert open_source(Data(archive, image_column="a", label_column="b")).classes == ("blue", "green", "red")
    with pytest.raises(DataError, match="name it by --image-column"):
        open_source(archive)
    # never ignored: class folders have no columns
    with pytest.raises(DataError, match=r"columns are those of a manifest: got --label-column 'b' for .*folders\.zip"):
        open_source(Data(without, label_column="b"))


def zip_with(path: Path, name: str, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, "/etc/passwd")
    return path


def tar_with(path: Path, **fields: object) -> Path:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a/x.png")
        for key, value in fields.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(b""))
    return path


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "C:/x.png", "..\\x.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_path_that_leads_outside_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"evil.{kind}"
    path = zip_with(path, name) if kind == "zip" else tar_with(path, name=name)
    with pytest.raises(ArchiveError, match="a path that leads outside"):
        unpack(path, tmp_path)
    assert list(tmp_path.rglob("*.png")) == []


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    evil = [
        zip_with(tmp_path / "link.zip", "a/x.png", stat.S_IFLNK | 0o777),
        tar_with(tmp_path / "link.tar", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        tar_with(tmp_path / "hard.tar", type=tarfile.LNKTYPE, linkname="../../etc/passwd"),
        tar_with(tmp_path / "device.tar", type=tarfile.CHRTYPE),
        tar_with(tmp_path / "fifo.tar", type=tarfile.FIFOTYPE),
    ]
    for path in evil:
        with pytest.raises(ArchiveError, match="holds a link or device"):
            unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # a small one will do: the floor below which ratios are not looked at is lowered
    monkeypatch.setattr(archives, "RATIO_FLOOR_BYTES", 1 << 20)
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(8 << 20))
    path = tmp_path / f"bomb{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(zeros, "a/x.png")
    else:
        with tarfile.open(path, "w:gz") as tar:
            tar.add(zeros, "a/x.png")
    with pytest.raises(ArchiveError, match="the archive is a bomb"):
        unpack(path, tmp_path)
    assert not (tmp_path / "a").exists()


def test_an_archive_larger_than_the_free_disk_is_refused(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(make_folder(), tmp_path / "packed.tar")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(ArchiveError, match="the disk is too full"):
        open_source(path)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_a_broken_archive_is_refused_and_leaves_nothing(
    make_folder: MakeFolder, tmp_path: Path, suffix: str, own_cache: Path
) -> None:
    path = pack(make_folder(), tmp_path / f"packed{suffix}")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ArchiveError, match="the archive can't be unpacked"):
        open_source(path)
    assert [file for file in own_cache.rglob("*") if file.is_file()] == []


def test_backslashes_in_a_zip_are_separators(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder()
    path = tmp_path / "win.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            info = zipfile.ZipInfo("x")
            info.filename = "\\".join(("colours", *file.relative_to(root).parts))
            archive.writestr(info, file.read_bytes())
    assert open_source(path).classes == ("blue", "green", "red")


def test_backslashes_lead_nowhere_outside(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="a path that leads outside"):
        unpack(zip_with(tmp_path / "evil.zip", "a\\..\\..\\x.png"), tmp_path / "out")


def test_files_beside_the_only_folder_do_not_matter(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder()
    path = pack(root, tmp_path / "pets.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme[1].txt", "x")
        archive.writestr("CDLA-Permissive-2.0.pdf", "x")
        archive.writestr("__MACOSX/colours/red/._000.png", "x")
    source = open_source(path)
    assert (source.classes, len(source.splits["train"])) == (("blue", "green", "red"), 24)
