"""Damaged and malicious archives are refused with one line, whatever the libraries raise, and leave nothing behind."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import random
import shutil
import tarfile
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from vivace.data.layouts import archives
from vivace.data.layouts.archives import unpack
from vivace.data.sources import open_source
from vivace.errors import ArchiveError, DataError

FORMATS = {".zip": "zip", ".tar": "tar", ".tar.gz": "gztar", ".tar.xz": "xztar", ".tar.bz2": "bztar"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = random.Random(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(3):
            (tmp_path / "images" / name / f"{index}.jpg").write_bytes(bytes(rng.choices(range(20), k=2000)))
    return tmp_path / "images"


def pack(folder: Path, suffix: str) -> Path:
    return Path(shutil.make_archive(str(folder.parent / "packed"), FORMATS[suffix], folder))


def leftovers(cache: Path) -> list[Path]:
    return list((cache / "archives").glob("*")) + list((cache / "archives").glob(".*"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_archive_truncated_anywhere_is_refused(folder: Path, suffix: str, own_cache: Path) -> None:
    whole = pack(folder, suffix).read_bytes()
    path = folder.parent / f"cut{suffix}"
    # a tar ends with blocks of padding, which may be missing
    length = len(whole) - (tarfile.RECORDSIZE if suffix == ".tar" else 0)
    for cut in sorted({*random.Random(1).sample(range(length), 40), length - 1}):
        path.write_bytes(whole[:cut])
        with pytest.raises(ArchiveError, match=r"the archive can't be unpacked: .* Restore it, or pack it again\."):
            open_source(path)
    assert leftovers(own_cache) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.xz", ".tar.bz2"])
def test_a_flipped_bit_is_found_by_the_checksum(folder: Path, suffix: str) -> None:
    whole = pack(folder, suffix).read_bytes()
    path = folder.parent / f"flipped{suffix}"
    expected = sorted(file.read_bytes() for file in folder.rglob("*.jpg"))
    rng = random.Random(2)
    for _ in range(60):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        target = folder.parent / "target"
        target.mkdir()
        # a bit of a time stamp or of a name may change, but no pixels, and no image is lost
        try:
            unpack(path, target)
        except ArchiveError:
            pass
        else:
            assert sorted(file.read_bytes() for file in target.rglob("*") if file.is_file()) == expected
        shutil.rmtree(target)


def test_a_tar_with_a_broken_header_inside_is_refused_rather_than_shortened(folder: Path) -> None:
    path = pack(folder, ".tar")
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[-1].offset
    data = bytearray(path.read_bytes())
    data[offset + 3] ^= 1
    path.write_bytes(data)
    # tarfile itself sees nothing wrong, only fewer images
    with tarfile.open(path) as tar:
        assert len([info for info in tar if info.isreg()]) == 5
    with pytest.raises(ArchiveError, match="it is damaged or cut short at byte"):
        open_source(path)


def test_a_huge_extended_header_does_not_fill_the_memory(tmp_path: Path) -> None:
    size = 64 << 20
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.write(b"a" * size)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="the archive can't be unpacked"):
            unpack(path, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()


def test_a_flood_of_empty_files_counts_as_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "RATIO_FLOOR_BYTES", 1 << 17)
    tar_path, zip_path = tmp_path / "flood.tar.gz", tmp_path / "flood.zip"
    with tarfile.open(tar_path, "w:gz") as tar:
        for index in range(2000):
            tar.addfile(tarfile.TarInfo(f"a/{index}.jpg"))
    monkeypatch.setattr(archives, "MAX_RATIO", 4)
    with zipfile.ZipFile(zip_path, "w") as archive:
        for index in range(2000):
            archive.writestr(f"a/{index}.jpg", b"")
    for path in (tar_path, zip_path):
        with pytest.raises(ArchiveError, match="the archive is a decompression bomb"):
            unpack(path, tmp_path)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("sizes", [[8 << 20], [0] * 2000])
def test_a_bomb_is_not_unpacked_even_to_be_listed(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "RATIO_FLOOR_BYTES", 1 << 17)
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for index, size in enumerate(sizes):
            info = tarfile.TarInfo(f"a/{index}.jpg")
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    # its end is missing, which would be reported if it were read that far
    os.truncate(path, path.stat().st_size * 9 // 10)
    with pytest.raises(ArchiveError, match="the archive is a decompression bomb"):
        unpack(path, tmp_path)


def test_a_member_longer_than_its_header_says_is_refused(tmp_path: Path) -> None:
    # current versions of zipfile and tarfile stop at the size themselves
    with pytest.raises(ArchiveError, match=r"a member is larger than the archive states: 'x\.jpg' in .*a\.zip"):
        archives._copy(io.BytesIO(b"123456"), tmp_path / "x.jpg", 5, tmp_path / "a.zip")


def test_too_many_or_too_large_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(folder, ".zip")
    monkeypatch.setattr(archives, "MAX_BYTES", 100)
    with pytest.raises(ArchiveError, match="the archive is too large: 6 files, 24,576 bytes"):
        open_source(path)
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 40)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 5)
    with pytest.raises(ArchiveError, match="the archive is too large: 6 files"):
        open_source(path)


def tar_of(path: Path, *parts: bytes) -> Path:
    """A tar, compressed by its suffix, of whole blocks."""
    packed = {".xz": lzma.compress, ".tar": bytes}[path.suffix]
    path.write_bytes(packed(b"".join(parts) + bytes(tarfile.RECORDSIZE)))
    return path


def header(kind: bytes, data: bytes = b"", name: str = "a/x.jpg") -> bytes:
    """A header of a type with its data, padded to whole blocks."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)


PLAIN = header(b"0", b"image")
HOSTILE = {
    # searched in quadratic time by older Pythons: 64 kB take half a minute
    "digits": (header(b"x", b"1" * 65_000) + PLAIN, "a number with over 200 digits"),
    "digits in a value": (header(b"x", record(b"comment", b"1" * 60_000)) + PLAIN, "a number with over 200 digits"),
    "records": (header(b"x", record(b"k", b"v") * 9000) + PLAIN, "more than 1,000 records"),
    "a long header": (header(b"x", record(b"comment", b"v" * 70_000)) + PLAIN, "an extended header of"),
    "a long name": (header(b"L", b"n" * 70_000) + PLAIN, "an extended header of"),
    "global headers": (header(b"g", record(b"comment", b"v")) * 20_000 + PLAIN, "extended headers in a row"),
    "global headers apart": ((header(b"g", record(b"k", b"v" * 9000)) + PLAIN) * 50, "extended headers of"),
    "many headers": ((header(b"x", record(b"k", b"v" * 60_000)) + PLAIN) * 100, "extended headers of"),
    "a sparse map": (header(b"S", bytes(512)) + PLAIN, "a sparse file"),
    "sparse in pax": (header(b"x", record(b"GNU.sparse.major", b"1")) + PLAIN, "a sparse file"),
    "a size below 0": (header(b"x", record(b"size", b"-1024")) + PLAIN, "a negative size"),
    "a broken record": (header(b"x", b"5 nothing\n") + PLAIN, "a pax header is damaged"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("suffix", [".tar", ".tar.xz"])
@pytest.mark.parametrize("what", HOSTILE)
def test_headers_that_cost_more_than_the_archive_are_refused(tmp_path: Path, what: str, suffix: str) -> None:
    blocks, message = HOSTILE[what]
    path = tar_of(tmp_path / f"hostile{suffix}", blocks)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=message):
            unpack(path, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "out").exists()


def test_long_names_and_times_in_pax_headers_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "long.tar.gz"
    (tmp_path / "out").mkdir()
    name = "ä" * 60 + "/" + "n" * 200 + ".jpg"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "hello"}) as tar:
        for index in range(3):
            info = tarfile.TarInfo(f"{index}{name}")
            info.size, info.mtime = 4, 1.5
            tar.addfile(info, io.BytesIO(b"%04d" % index))
    unpack(path, tmp_path / "out")
    assert [(tmp_path / "out" / f"{index}{name}").read_bytes() for index in range(3)] == [b"0000", b"0001", b"0002"]


def test_hard_links_are_plain_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(b"image")
    os.link(tmp_path / "a" / "x.jpg", tmp_path / "a" / "y.jpg")
    path = tmp_path / "linked.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "a", "a")
        assert any(member.islnk() for member in tar.getmembers())
    (tmp_path / "out").mkdir()
    unpack(path, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out" / "a").iterdir()} == {
        "x.jpg": b"image",
        "y.jpg": b"image",
    }


def test_hard_links_to_one_large_file_are_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "RATIO_FLOOR_BYTES", 1 << 20)
    path = tmp_path / "bomb.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a/x.jpg")
        info.size = 1 << 20
        tar.addfile(info, io.BytesIO(bytes(1 << 20)))
        for index in range(400):
            link = tarfile.TarInfo(f"a/{index}.jpg")
            link.type, link.linkname = tarfile.LNKTYPE, "a/x.jpg"
            tar.addfile(link)
    with pytest.raises(ArchiveError, match="the archive is a decompression bomb"):
        unpack(path, tmp_path / "out")


def test_a_colon_in_a_name_is_no_drive(folder: Path) -> None:
    (folder / "a" / "0.jpg").rename(folder / "a" / "1:1.jpg")
    assert "a/1:1.jpg" in open_source(pack(folder, ".tar")).splits["train"].names


def test_a_changed_archive_is_unpacked_again(folder: Path) -> None:
    assert len(open_source(pack(folder, ".tar")).splits["train"]) == 6
    (folder / "a" / "new.jpg").write_bytes(b"x" * 20_000)
    assert len(open_source(pack(folder, ".tar")).splits["train"]) == 7


def test_two_processes_unpacking_at_once_both_succeed(folder: Path, own_cache: Path) -> None:
    path = pack(folder, ".zip")
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(len(open_source(path).splits["train"]))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [6] * 4
    assert len(leftovers(own_cache)) == 1


def test_the_disk_is_synced_once_and_not_for_every_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append("fsync"))
    monkeypatch.setattr(os, "sync", lambda: synced.append("sync"))
    open_source(pack(folder, ".zip"))
    assert synced == ["sync"]


def test_a_cache_that_cant_be_written_is_reported(folder: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("")
    with pytest.raises(DataError, match=r"can't be unpacked into the cache: .*occupied.* \(Not a directory\)"):
        open_source(pack(folder, ".zip"), cache_dir=occupied)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError):
        open_source(pack(tmp_path / "images", suffix))


def test_a_zip_whose_list_hides_members_is_refused_rather_than_shortened(folder: Path) -> None:
    path = pack(folder, ".zip")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offset = archive.start_dir
    # the length of the first entry's comment: it swallows the entries that follow
    data[offset + 33] = 2
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) < 6
    with pytest.raises(ArchiveError, match="members and should list 8"):
        open_source(path)
