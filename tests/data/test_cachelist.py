"""Everything that vivace keeps in a cache is listed and can be removed, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vivace.cachedir import default_cache_dir
from vivace.cli import main
from vivace.data.caching.cache import Cache, open_cache
from vivace.data.caching.contents import list_caches, remove_caches
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import DataError

# JSON, too
MINE = '{"mine": 1}'
KEY = "0123456789abcdef0123"
OURS = {
    "archives/packed-0123456789ab/red/1.png": 1000,
    "archives/packed-0123456789ab/blue/1.png": 500,
    "downloads/cifar10/data.bin": 2000,
    f"kernels/norms-{KEY}.so": 300,
    f"kernels/norms-{KEY}.so.sha256": 64,
    f"aoti/fast_cnn-bf16-{KEY}/model.so": 700,
    "inductor/ab/code.py": 50,
    f"tune/{KEY}.json": 20,
}
MARKS = {
    "archives/packed-0123456789ab/.vivace-unpacked.json": "{}",
    "downloads/cifar10/.vivace-downloaded": "",
    f"kernels/norms-{KEY}.so.sha256": f"{'0' * 64}  norms-{KEY}.so\n",
    f"aoti/fast_cnn-bf16-{KEY}/SHA256": "0",
    "inductor/.vivace": "",
    f"tune/{KEY}.json": '{"execution": {}}',
}
# names as vivace gives them, but not made by vivace
THEIRS = (
    "images/berlin-2024061512/1.jpg",
    "images/other-2024061513/cache.json",
    "archives/thesis-202406151230/thesis.tex",
    "downloads/dtd/mine.txt",
    f"kernels/circuit-{KEY}.so",
    f"aoti/notes-{KEY}/notes.txt",
    "tune/11112222333344445555.json",
    "archives/backups/photos.zip",
    "archives/2026-11-28.zip",
    "downloads/holidays/1.jpg",
    "downloads/thesis.pdf",
    "images/me/1.jpg",
    "images/2026-11-28/1.jpg",
    "kernels/linux.so",
    "aoti/notes.txt",
    "tune/song.json",
    "Documents/thesis.pdf",
    "thesis.pdf",
)


@pytest.fixture
def cache(make_folder: Callable[..., Path]) -> Cache:
    return open_cache(open_source(make_folder()), Preprocess(size=16, store_size=16))


@pytest.fixture
def filled(cache: Cache) -> Path:
    """A cache with an entry of each kind, and other files beside them."""
    root = default_cache_dir()
    shutil.rmtree(root / "kernels", ignore_errors=True)
    for name, size in OURS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes(size))
    for name, text in MARKS.items():
        (root / name).write_text(text)
    for name in THEIRS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(MINE)
    return root


def test_everything_is_listed_with_its_size(filled: Path, cache: Cache) -> None:
    found = {entry.title: entry for entry in list_caches(filled)}
    sizes = {title: entry.num_bytes for title, entry in found.items() if entry.kind != "images"}
    assert sizes == {
        "archives/packed-0123456789ab": 1502,
        "downloads/cifar10": 2000,
        "kernels": 300 + 64 + len(f"  norms-{KEY}.so\n"),
        f"aoti/fast_cnn-bf16-{KEY}": 701,
        "inductor": 50,
        "tune": len('{"execution": {}}'),
    }
    images = found[f"images/{cache.folder.name}"]
    assert images.num_images == 24
    assert images.num_bytes > 24 * 16 * 16 * 3
    assert list_caches(filled / "nowhere") == []


def test_all_of_it_is_removed_and_nothing_else(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(remove_caches(filled, "all")) == 7
    assert (
        f"warning: not removed from {filled}, because nothing marks it as made by vivace: images/"
        in capsys.readouterr().err
    )
    assert list_caches(filled) == []
    assert all((filled / name).read_text() == MINE for name in THEIRS)
    left = {path.relative_to(filled).as_posix() for path in filled.rglob("*") if path.is_file()}
    assert {name for name in left - set(THEIRS) if not name.endswith(".lock")} == {"inductor/.vivace"}
    assert remove_caches(filled, "all") == []


@pytest.mark.parametrize(
    ("chosen", "removed"),
    [
        ("kernels", ["kernels"]),
        ("archives", ["archives/packed-0123456789ab"]),
        ("downloads/cifar10", ["downloads/cifar10"]),
        ("cifar10", ["downloads/cifar10"]),
    ],
)
def test_one_kind_or_one_entry_is_removed(filled: Path, chosen: str, removed: list[str]) -> None:
    before = {entry.title for entry in list_caches(filled)}
    assert [entry.title for entry in remove_caches(filled, chosen)] == removed
    assert before - {entry.title for entry in list_caches(filled)} == set(removed)


def test_a_damaged_cache_is_listed_and_can_be_removed(cache: Cache) -> None:
    (cache.folder / "cache.json").write_text("[1, 2")
    (entry,) = (entry for entry in list_caches(default_cache_dir()) if entry.kind == "images")
    assert entry.num_images == 0
    remove_caches(default_cache_dir(), entry.name)
    assert not cache.folder.exists()


@pytest.mark.parametrize("mark", ["", "link"])
def test_a_folder_of_torchs_compiler_that_vivace_did_not_make_stays(filled: Path, tmp_path: Path, mark: str) -> None:
    (filled / "inductor" / ".vivace").unlink()
    if mark:
        (filled / "inductor" / ".vivace").symlink_to(__file__)
    assert remove_caches(filled, "inductor") == []
    assert (filled / "inductor" / "ab" / "code.py").exists()


@pytest.mark.parametrize(
    "name", ["..", "../images", ".", "", "/", "colour", "holidays", "downloads/holidays", "Documents"]
)
def test_only_a_cache_can_be_removed(filled: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"there is no such cache entry: got .* 'vivace cache' lists them\."):
        remove_caches(filled, name)
    assert len(list_caches(filled)) == 7


def test_a_link_is_neither_followed_nor_removed(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.pdf").write_text("mine")
    link = filled / "archives" / "thesis-0123456789ab"
    link.symlink_to(tmp_path / "thesis")
    (filled / "archives" / "packed-0123456789ab" / "link").symlink_to(tmp_path / "thesis")
    remove_caches(filled, "all")
    assert link.is_symlink()
    assert (tmp_path / "thesis" / "thesis.pdf").read_text() == "mine"


def test_what_cant_be_removed_is_reported(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(DataError, match=r"^the cache can't be removed: .* \(Read-only file system\)\. Check"):
        remove_caches(filled, "archives")


def test_the_command_lists_and_removes(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = filled / "archives" / ".packed-0123456789ab.0123abcd.tmp"
    left.mkdir()
    assert main(["cache"]) == 0
    assert not left.exists()
    out = capsys.readouterr().out
    assert "downloads/cifar10" in out
    assert f"7 entries, 0.0 MiB, in {filled}" in out
    assert main(["cache", "--remove", "kernels", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["removed"] == ["kernels"]
    assert {entry["kind"] for entry in printed["caches"]} == {
        "images",
        "archives",
        "downloads",
        "aoti",
        "inductor",
        "tune",
    }
    assert main(["cache", "--remove", "all"]) == 0
    assert "removed 6 entries" in capsys.readouterr().out
