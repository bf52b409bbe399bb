"""A cache that others may write to: nothing in it blocks, fills memory, or is trusted by its name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vivace.data.caching import cache as cache_module
from vivace.data.caching.cache import Cache, audited_cache, open_cache
from vivace.data.caching.contents import list_caches
from vivace.data.caching.files import read_cache, settle
from vivace.data.caching.index import FREE_BYTES, DamagedFiles, folders_with, index_limit
from vivace.data.caching.kept import source_in_cache
from vivace.data.layouts.unpacked import LISTING, unpacked_once
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import DataError

MakeFolder = Callable[..., Path]
Edit = Callable[[dict[str, Any]], object]
PREPROCESS = Preprocess(size=16, store_size=16)
FILES = ["cache.json", "train.npy", "train.labels.npy", "train.digests.npy"]
ROOM = 64 * 2**20


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a test that blocks on a pipe fail."""
    monkeypatch.setattr(cache_module, "settle", lambda folder: settle(folder).join())

    def refuse(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, refuse)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def opened(root: Path) -> Cache:
    return open_cache(open_source(root), PREPROCESS)


def damaged(told: str) -> bool:
    return told.count("warning: the cache of colours is damaged, so its images are read again: ") == len(
        told.splitlines()
    )


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/none")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def sparse(path: Path) -> None:
    os.truncate(path, 2**30)


def npz(path: Path) -> None:
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros(3))
    put(path, archive.getvalue())


def npy(values: Any) -> Callable[[Path], None]:
    def tamper(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, values, allow_pickle=True)

    return tamper


def header(text: str, length: int = 0) -> Callable[[Path], None]:
    def tamper(path: Path) -> None:
        put(path, b"\x93NUMPY\x01\0" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n")
        os.truncate(path, path.stat().st_size + length)

    return tamper


def of_shape(shape: str, length: int = 0) -> Callable[[Path], None]:
    return header(f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}", length)


ANY = [fifo, link, dangling, folder, sparse]
INDEX = [
    lambda path: put(path, b"[" * 200_000),
    lambda path: put(path, b'{"a":' * 200_000),
    lambda path: put(path, b"7"),
]
COLUMN = [
    npz,
    npy(np.int64(3)),
    npy(np.array([{}], dtype=object)),
    npy(np.zeros((24, 1), dtype=np.int64)),
    npy(np.zeros(24, dtype=np.float64)),
    npy(np.zeros(23, dtype=np.int64)),
    of_shape("(400000000,)", 3_200_000_000),
    of_shape("(99999999999999,)"),
    of_shape("(-1,)"),
    of_shape("(True,)", 8),
    of_shape(f"({10**40},)"),
    header("(" * 9_000),
    header("{'descr': 'V999999999999', 'fortran_order': False, 'shape': ()}"),
]


@pytest.mark.parametrize(
    ("file", "tamper"),
    [
        *((file, tamper) for file in FILES for tamper in ANY),
        *(("cache.json", tamper) for tamper in INDEX),
        ("train.npy", npz),
        ("train.labels.npy", npz),
        ("train.labels.npy", of_shape("(400000000,)", 3_200_000_000)),
    ],
)
def test_pipes_and_devices_in_a_cache_neither_block_nor_are_read_and_it_is_rebuilt(
    make_folder: MakeFolder, capfd: pytest.CaptureFixture[str], file: str, tamper: Callable[[Path], None]
) -> None:
    root = make_folder()
    first = opened(root)
    place = first.folder / file
    tamper(place)
    tracemalloc.start()
    again = opened(root)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < ROOM
    told = capfd.readouterr().err
    assert damaged(told), told
    assert len(told.splitlines()) == 1
    assert (again.fingerprint, again.audit) == (first.fingerprint, first.audit)
    assert place.is_file()
    assert not place.is_symlink()
    # and the next one finds it whole
    opened(root)
    assert capfd.readouterr().err == ""


def reseal(place: Path, edit: Edit) -> None:
    """Change an index, and its hash with it."""
    index = json.loads(place.read_bytes())
    edit(index)
    del index["sha256"]
    text = json.dumps(index, sort_keys=True, separators=(",", ":"))
    index["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    place.write_text(json.dumps(index, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize("tamper", COLUMN)
@pytest.mark.parametrize("file", FILES[1:])
def test_a_file_of_another_shape_or_type_is_damaged(
    make_folder: MakeFolder, file: str, tamper: Callable[[Path], None]
) -> None:
    cache = opened(make_folder())
    tamper(cache.folder / file)
    tracemalloc.start()
    with pytest.raises(DamagedFiles, match=r"^[^\n]+$"):
        read_cache(cache.folder, PREPROCESS)
    assert tracemalloc.get_traced_memory()[1] < ROOM
    tracemalloc.stop()


VALUES: list[Any] = [5, None, [], {}, "x", [1], {"train": 5}, {"train": [5]}, {"../train": []}, [[1]], 1e300, True]


@pytest.mark.parametrize("key", ["audit", "facts", "names", "origin", "checksums", "fingerprint", "signature"])
def test_a_sealed_index_of_other_types_is_damaged(make_folder: MakeFolder, key: str) -> None:
    folder = opened(make_folder()).folder
    whole = (folder / "cache.json").read_bytes()
    for value in VALUES:
        put(folder / "cache.json", whole)
        if (key, value) in (("signature", "x"), ("names", {})):
            continue
        reseal(folder / "cache.json", lambda index, value=value: index.update({key: value}))
        with pytest.raises(DamagedFiles):
            read_cache(folder, PREPROCESS)


def seal_all(folder: Path, labels: np.ndarray, digests: np.ndarray) -> None:
    """Other labels and digests, with a matching fingerprint."""
    np.save(folder / "train.labels.npy", labels)
    np.save(folder / "train.digests.npy", digests)

    def edit(index: dict[str, Any]) -> None:
        hasher = hashlib.sha256(json.dumps(index["facts"], sort_keys=True, separators=(",", ":")).encode())
        hasher.update(f"train\0{labels.dtype}{labels.shape}{digests.dtype}{digests.shape}".encode())
        hasher.update(labels.tobytes() + digests.tobytes())
        index["fingerprint"] = hasher.hexdigest()

    reseal(folder / "cache.json", edit)


@pytest.mark.parametrize("what", ["label", "negative label", "digest"])
def test_sealed_labels_and_digests_that_no_cache_has_are_damaged(
    make_folder: MakeFolder, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    root = make_folder()
    split = opened(root).splits["train"]
    folder, labels, digests = opened(root).folder, split.labels_N.copy(), split.digests_N.copy()
    seal_all(folder, labels, digests)
    opened(root)
    assert capfd.readouterr().err == ""
    if what == "digest":
        digests[3] = b"x" * 32
    else:
        labels[3] = 99 if what == "label" else -1
    seal_all(folder, labels, digests)
    assert opened(root).splits["train"].labels_N.max() < 99
    assert damaged(capfd.readouterr().err)


def test_a_damaged_cache_is_replaced_and_what_others_put_there_stays(
    make_folder: MakeFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    root = make_folder()
    folder = opened(root).folder
    (folder / "notes.txt").write_text("mine")
    (folder / "photos").mkdir()
    (folder / "photos" / "a.npy").write_text("mine too")
    elsewhere = root.parent / "big.npy"
    (folder / "train.npy").rename(elsewhere)
    pixels = elsewhere.read_bytes()
    (folder / "train.npy").symlink_to(elsewhere)
    opened(root)
    assert damaged(capfd.readouterr().err)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "photos" / "a.npy").read_text() == "mine too"
    assert elsewhere.read_bytes() == pixels
    opened(root)
    assert capfd.readouterr().err == ""


def test_a_folder_with_files_in_the_place_of_an_index_is_left_alone(make_folder: MakeFolder) -> None:
    root = make_folder()
    folder = opened(root).folder
    (folder / "cache.json").unlink()
    (folder / "cache.json").mkdir()
    (folder / "cache.json" / "mine").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"can't be written: .*cache\.json is a folder that holds files: move it away"):
        opened(root)
    assert (folder / "cache.json" / "mine").read_text() == "mine"
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("tamper", [fifo, link, sparse, *INDEX])
def test_a_tampered_index_beside_the_one_that_is_looked_for_does_no_harm(
    make_folder: MakeFolder, tamper: Callable[[Path], None]
) -> None:
    root = make_folder()
    cache = opened(root)
    images = cache.folder.parent
    shutil.copytree(cache.folder, images / "colours-0123456789")
    tamper(images / "colours-0123456789" / "cache.json")
    tracemalloc.start()
    assert list(folders_with(cache.fingerprint, images / "-")) == [cache.folder]
    assert source_in_cache(cache.fingerprint, PREPROCESS, images.parent) is not None
    assert any(entry.num_images == 24 for entry in list_caches(images.parent))
    assert tracemalloc.get_traced_memory()[1] < ROOM
    tracemalloc.stop()


def test_a_fingerprint_is_found_across_the_parts_that_are_read(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(make_folder())
    for size in (81, 82, 100):
        monkeypatch.setattr("vivace.data.caching.index.CHUNK_BYTES", size)
        assert list(folders_with(cache.fingerprint, cache.folder)) == [cache.folder, cache.folder]


def test_an_index_may_be_several_times_as_large_as_it_is(make_folder: MakeFolder) -> None:
    root = make_folder()
    size = (opened(root).folder / "cache.json").stat().st_size
    source = open_source(root)
    assert index_limit(source) - FREE_BYTES > 4 * size
    # and an audit reads no more than a training does
    path = opened(root).folder / "cache.json"
    os.truncate(path, index_limit(source) + 1)
    assert audited_cache(source, PREPROCESS).audit.num_images == 24
    assert path.stat().st_size == size


def test_a_list_of_what_was_unpacked_that_never_ends_is_not_read(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "a").write_text("a")

    folder = unpacked_once(tmp_path, "x", "0" * 12 + "1" * 12, fill)
    sparse(folder / LISTING)
    tracemalloc.start()
    assert unpacked_once(tmp_path, "x", "0" * 12 + "1" * 12, fill) != folder
    assert tracemalloc.get_traced_memory()[1] < ROOM
    tracemalloc.stop()
