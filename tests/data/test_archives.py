"""Archives are unpacked safely or not at all."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vivace.data.layouts import archives
from vivace.data.layouts.archives import unpack
from vivace.data.place import Data
from vivace.data.sources import open_source
from vivace.data.splits import DataSource
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
    with pytest.raises(DataError, match="name it by `image_column`"):
        open_source(archive)
    # never ignored: class folders have no columns
    with pytest.raises(
        DataError, match=r"only a manifest has image and label columns: got `label_column` 'b' for .*folders\.zip"
    ):
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


@pytest.mark.parametrize(
    "name",
    [".vivace-unpacked.json", ".vivace-unpacked.json/x.png", "./.VIVACE-unpacked.json/x.png", ".vivace-downloaded/x"],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_of_vivaces_own_files_are_refused_as_such(own_cache: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"images.{kind}"
    path = zip_with(path, name) if kind == "zip" else tar_with(path, name=name)
    with pytest.raises(ArchiveError, match=r"^the archive holds a name reserved for vivace: .*Pack it again"):
        open_source(path)
    assert not list(own_cache.rglob("*vivace-*"))


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
    # a small archive suffices, because the size below which ratios are ignored is lowered
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
    with pytest.raises(ArchiveError, match="the archive is a decompression bomb"):
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


def test_backslashes_never_lead_outside(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="a path that leads outside"):
        unpack(zip_with(tmp_path / "evil.zip", "a\\..\\..\\x.png"), tmp_path / "out")


@pytest.mark.parametrize("folder", ["", "wrapper/"])
def test_a_message_names_the_archive_and_not_where_it_was_unpacked(tmp_path: Path, folder: str) -> None:
    path = tmp_path / "flat.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}0.png", b"x")
    with pytest.raises(DataError) as error:
        open_source(path)
    place = f"{path}/wrapper" if folder else str(path)
    assert str(error.value) == f"there are no class folders in {place}. Put the images into one folder per class."


@pytest.mark.parametrize("packed", [True, False])
def test_archives_within_are_named(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "outer.zip" if packed else tmp_path / "outer"
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train.zip", b"PK")
            archive.writestr("test.tar.gz", b"x")
    else:
        path.mkdir()
        (path / "train.zip").write_bytes(b"PK")
        (path / "test.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError) as error:
        open_source(path)
    assert str(error.value) == (
        f"there are no class folders in {path}, but archives: test.tar.gz, train.zip. Unpack each into a folder of its "
        "name, and give the folder that holds them."
    )


def test_files_beside_the_only_folder_do_not_matter(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder()
    path = pack(root, tmp_path / "pets.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme[1].txt", "x")
        archive.writestr("CDLA-Permissive-2.0.pdf", "x")
        archive.writestr("__MACOSX/colours/red/._000.png", "x")
    source = open_source(path)
    assert (source.classes, len(source.splits["train"])) == (("blue", "green", "red"), 24)


def unpacked_in(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "archives").iterdir() if not path.name.startswith("."))
    return folder


def num_images(source: DataSource) -> int:
    return sum(len(split.labels) for split in source.splits.values())


@pytest.mark.parametrize("how", ["removed", "cut short", "folder removed"])
def test_files_deleted_from_the_cache_are_unpacked_again_and_reported(
    make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    path = pack(make_folder(), tmp_path / "packed.zip")
    before = open_source(path, cache_dir=tmp_path / "cache")
    folder = unpacked_in(tmp_path / "cache")
    images = sorted(folder.rglob("*.png"))
    if how == "removed":
        images[0].unlink()
    elif how == "cut short":
        images[0].write_bytes(b"")
    else:
        shutil.rmtree(images[0].parent)
    capsys.readouterr()
    after = open_source(path, cache_dir=tmp_path / "cache")
    assert "unpacked files are missing or changed in" in capsys.readouterr().err
    assert num_images(after) == num_images(before)
    assert sorted(folder.rglob("*.png")) == images
    assert all(image.stat().st_size for image in images)
    open_source(path, cache_dir=tmp_path / "cache")
    assert "missing" not in capsys.readouterr().err


@pytest.mark.parametrize("lost", [False, True])
def test_files_of_others_in_the_cache_are_neither_used_nor_removed(
    make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: bool
) -> None:
    path = pack(make_folder(), tmp_path / "packed.zip")
    before = open_source(path, cache_dir=tmp_path / "cache")
    image = next(unpacked_in(tmp_path / "cache").rglob("*.png"))
    mine = image.with_name("mine.png")
    mine.write_bytes(image.read_bytes())
    if lost:
        image.unlink()
    assert num_images(open_source(path, cache_dir=tmp_path / "cache")) == num_images(before)
    assert "holds a file that was not unpacked there: " in capsys.readouterr().err
    assert mine.exists()


def test_a_folder_of_others_with_the_caches_name_is_left_alone(make_folder: MakeFolder, tmp_path: Path) -> None:
    path = pack(make_folder(), tmp_path / "packed.zip")
    before = open_source(path, cache_dir=tmp_path / "cache")
    folder = unpacked_in(tmp_path / "cache")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    assert num_images(open_source(path, cache_dir=tmp_path / "cache")) == num_images(before)
    assert [file.name for file in folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_another_archive_of_the_same_name_size_and_time_is_another(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"data.{suffix}"
    seen = []
    for color in (100, 200):
        root = tmp_path / f"of-{color}"
        for name in ("a", "b"):
            for number in range(3):
                (root / name).mkdir(parents=True, exist_ok=True)
                pixels = Image.new("RGB", (16, 16), (color, number, ord(name)))
                pixels.save(root / name / f"{number}.bmp")
        packed = pack(root, tmp_path / f"{color}.{suffix}")
        os.utime(packed, (1_000_000_000, 1_000_000_000))
        shutil.copy2(packed, archive)
        source = open_source(archive, cache_dir=tmp_path / "cache")
        seen.append((archive.stat().st_size, archive.stat().st_mtime, source.root))
    assert seen[0][:2] == seen[1][:2]
    first, second = (sorted(seen[i][2].rglob("*.bmp"))[0].read_bytes() for i in (0, 1))
    assert first != second


def test_duplicate_names_are_reported(
    make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder()
    path = pack(folder, tmp_path / "packed.zip")
    name = zipfile.ZipFile(path).namelist()[-1]
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(name, b"the later one")
    (tmp_path / "out").mkdir()
    unpack(path, tmp_path / "out")
    assert f"warning: 1 names occur more than once in {path}; the last is used: '{name}'" in capsys.readouterr().err
    assert (tmp_path / "out" / name).read_bytes() == b"the later one"
