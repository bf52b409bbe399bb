"""The cache decodes each image once, detects damage and changes, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from vivace.cachedir import default_cache_dir
from vivace.data import workers
from vivace.data.caching import build as cachebuild
from vivace.data.caching import cache as cache_module
from vivace.data.caching import files as cachefiles
from vivace.data.caching.cache import Cache, open_cache
from vivace.data.caching.contents import list_caches, remove_caches
from vivace.data.caching.files import allocate, keep_rows, settle
from vivace.data.caching.stored import StoredImages
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.data.splits import DataSource, Split
from vivace.errors import DataError

MakeFolder = Callable[..., Path]
PREPROCESS = Preprocess(size=16, store_size=16)


def opened(root: Path, **options: object) -> Cache:
    return open_cache(open_source(root), PREPROCESS, **options)  # type: ignore[arg-type]


def array_source(side: int, channels: int, *, name: str = "arrays") -> DataSource:
    arrays = np.random.default_rng(0).integers(0, 256, (12, side, side, channels), dtype=np.uint8)
    names = tuple(f"train/{index:05d}" for index in range(12))
    split = Split(name="train", names=names, labels=np.arange(12) % 3, arrays=arrays)
    return DataSource(name=name, classes=("a", "b", "c"), splits={"train": split}, channels=channels)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync caches at once, so that no thread changes files that a test has modified."""
    monkeypatch.setattr(cache_module, "settle", lambda folder: settle(folder).join())


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """no_decoding(): from now on, decoding fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    return lambda: monkeypatch.setattr(cachebuild, "_decode_split", refuse)


def left_overs() -> list[str]:
    return [path.name for path in (default_cache_dir() / "images").iterdir() if path.suffix in (".tmp", ".old")]


def test_a_cache_holds_the_pixels_labels_and_digests_of_the_files(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "test"))
    cache = opened(root)
    for name, split in cache.splits.items():
        assert split.images_NHWC.dtype == np.uint8
        assert isinstance(split.images_NHWC, StoredImages)
        assert split.labels_N.dtype == np.int64
        for index, item in enumerate(split.names):
            assert item.startswith(f"{name}/{cache.classes[split.labels_N[index]]}/")
            np.testing.assert_array_equal(split.images_NHWC[index], PREPROCESS.load(root / item))
            digest = hashlib.blake2b((root / item).read_bytes(), digest_size=16).hexdigest()
            assert split.digests_N[index] == digest.encode()


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_of_the_stored_size_are_kept_and_others_resized_by_the_same_code(channels: int) -> None:
    source = array_source(20, channels)
    arrays = source.splits["train"].arrays
    assert arrays is not None
    for wanted in (1, 3):
        for side in (20, 16, 28):
            preprocess = Preprocess(
                size=side,
                store_size=side,
                channels=wanted,  # type: ignore[arg-type]
                mean=(0.5,) * wanted,
                std=(0.5,) * wanted,
            )
            stored = open_cache(source, preprocess).splits["train"].images_NHWC
            np.testing.assert_array_equal(stored, [preprocess.load(array) for array in arrays])
            if side == 20 and wanted == channels:
                np.testing.assert_array_equal(stored, arrays)


def test_a_changed_array_is_detected(no_decoding: Callable[[], None]) -> None:
    source = array_source(16, 3)
    first = open_cache(source, PREPROCESS)
    changed = array_source(16, 3)
    assert changed.splits["train"].arrays is not None
    changed.splits["train"].arrays[5, 3, 2, 1] += 1
    second = open_cache(changed, PREPROCESS)
    assert second.fingerprint != first.fingerprint
    no_decoding()
    assert open_cache(changed, PREPROCESS).fingerprint == second.fingerprint


def test_progress_counts_to_all_images(make_folder: MakeFolder) -> None:
    seen: list[tuple[int, int]] = []
    opened(make_folder(splits=("train", "test")), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (48, 48)
    assert seen == sorted(seen)


def test_a_second_opening_decodes_nothing(make_folder: MakeFolder, no_decoding: Callable[[], None]) -> None:
    root = make_folder()
    first = opened(root)
    no_decoding()
    second = opened(root)
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.splits["train"].images_NHWC, first.splits["train"].images_NHWC)


def change_contents(root: Path) -> None:
    Image.new("RGB", (20, 20), (1, 2, 3)).save(root / "red" / "000.png")


CHANGES: dict[str, Callable[[Path], object]] = {
    "contents": change_contents,
    "time": lambda root: os.utime(root / "red" / "000.png", ns=(1, 1)),
    "vanished": lambda root: (root / "red" / "000.png").unlink(),
    "renamed": lambda root: (root / "red" / "000.png").rename(root / "red" / "new.png"),
    "added": lambda root: Image.new("RGB", (20, 20), (1, 2, 3)).save(root / "red" / "new.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_since_the_cache_was_opened_is_reported(make_folder: MakeFolder, change: str) -> None:
    root = make_folder()
    cache = opened(root)
    assert cache.change() is None
    CHANGES[change](root)
    told = cache.change()
    assert told is not None
    assert told.startswith("files of colours were touched, changed, added or removed since they were read")
    assert ("such as the new" in told) == (change in ("renamed", "added"))
    again = opened(root)
    assert again.change() is None
    # another name may change the order of the images
    assert (again.fingerprint == cache.fingerprint) == (change == "time")


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_continues_with_the_cache_that_it_began_with(
    make_folder: MakeFolder, no_decoding: Callable[[], None], capsys: pytest.CaptureFixture[str], change: str
) -> None:
    root = make_folder()
    cache = opened(root)
    images = np.array(cache.splits["train"].images_NHWC)
    CHANGES[change](root)
    no_decoding()
    earlier = opened(root, fingerprint=cache.fingerprint)
    assert "it continues with the original images from the cache" in capsys.readouterr().err
    assert (earlier.fingerprint, earlier.splits["train"].names) == (cache.fingerprint, cache.splits["train"].names)
    np.testing.assert_array_equal(earlier.splits["train"].images_NHWC, images)
    # compared with the files as they are now
    assert earlier.change() is None


def test_a_run_continues_with_its_cache_although_a_class_was_added(
    make_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder()
    cache = opened(root)
    (root / "white").mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(240, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "white" / f"{index}.png")
    assert len(opened(root).classes) == 4
    earlier = opened(root, fingerprint=cache.fingerprint)
    assert (earlier.classes, earlier.folder) == (cache.classes, cache.folder)
    assert "it continues with the original images" in capsys.readouterr().err
    # nor does a removed class make the cache unusable
    shutil.rmtree(root / "white")
    shutil.rmtree(root / "red")
    assert opened(root, fingerprint=cache.fingerprint).classes == cache.classes


def test_the_cache_of_other_data_is_not_mistaken_for_that_of_a_run(make_folder: MakeFolder) -> None:
    first = opened(make_folder("first"))
    root = make_folder("second")
    change_contents(root)
    assert opened(root, fingerprint=first.fingerprint).fingerprint != first.fingerprint


def test_if_the_cache_of_a_run_is_gone_or_damaged_the_files_are_read(make_folder: MakeFolder) -> None:
    root = make_folder()
    cache = opened(root)
    flip(cache.folder / "train.npy", 1000)
    change_contents(root)
    assert opened(root, fingerprint=cache.fingerprint).fingerprint != cache.fingerprint


def test_a_file_that_changed_before_the_second_opening_is_read_again(make_folder: MakeFolder) -> None:
    root = make_folder()
    opened(root)
    change_contents(root)
    split = opened(root).splits["train"]
    assert (split.images_NHWC[split.names.index("red/000.png")] == [1, 2, 3]).all()


def test_files_that_are_not_images_and_folders_without_images_do_not_stop_a_training(make_folder: MakeFolder) -> None:
    root = make_folder()
    cache = opened(root)
    (root / "red" / "notes.txt").touch()
    (root / "runs").mkdir()
    assert cache.change() is None


def test_images_beside_a_manifest_that_does_not_list_them_count_only_if_they_are_new(make_folder: MakeFolder) -> None:
    root = make_folder()
    rows = [f"{label}/{index:03d}.png,{label}" for label in ("red", "blue") for index in range(4)]
    (root / "list.csv").write_text("file_name,label\n" + "\n".join(rows) + "\n")
    cache = opened(root / "list.csv")
    assert len(cache.unlisted) == 8
    assert cache.change() is None


def test_a_new_version_of_pillow_reads_the_images_again(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    before = opened(root)
    monkeypatch.setattr(PIL, "__version__", "99.0.0")
    after = opened(root)
    assert after.signature != before.signature
    assert after.fingerprint == before.fingerprint


def test_other_labels_or_preprocessing_give_another_fingerprint(make_folder: MakeFolder) -> None:
    source = open_source(make_folder())
    first = open_cache(source, PREPROCESS).fingerprint
    train = source.splits["train"]
    other = dataclasses.replace(source, splits={"train": dataclasses.replace(train, labels=(train.labels + 1) % 3)})
    assert open_cache(other, PREPROCESS).fingerprint != first
    assert open_cache(source, dataclasses.replace(PREPROCESS, fit="squash")).fingerprint != first
    assert open_cache(source, dataclasses.replace(PREPROCESS, mean=(0.1, 0.2, 0.3))).fingerprint == first


def test_the_classes_of_a_bundle_have_a_cache_of_their_own(
    make_folder: MakeFolder, no_decoding: Callable[[], None]
) -> None:
    root = make_folder()
    mine = open_source(root)
    bundle = open_source(root, classes=("red", "white", "green", "blue"), require_train=True)
    open_cache(mine, PREPROCESS)
    open_cache(bundle, PREPROCESS, require_train=False)
    no_decoding()
    open_cache(mine, PREPROCESS)
    open_cache(bundle, PREPROCESS, require_train=False)


FILES = ("train.npy", "train.labels.npy", "train.digests.npy", "cache.json")
DAMAGE: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: os.truncate(path, 0),
    "a byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a byte long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "text": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_cache_is_made_again(
    make_folder: MakeFolder, capsys: pytest.CaptureFixture[str], file: str, damage: str
) -> None:
    root = make_folder()
    cache = opened(root)
    path = cache.folder / file
    expected, size = np.array(cache.splits["train"].images_NHWC), path.stat().st_size
    DAMAGE[damage](path)
    again = opened(root)
    np.testing.assert_array_equal(again.splits["train"].images_NHWC, expected)
    assert (again.fingerprint, again.audit) == (cache.fingerprint, cache.audit)
    told = capsys.readouterr().err
    assert told.count("warning: the cache of colours is damaged, so its images are read again: ") == (
        (damage, file) != ("removed", "cache.json")
    )
    assert len(told.splitlines()) <= 1
    assert path.stat().st_size == size


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position, os.SEEK_END if position < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("position", [128, 9000, -8])
@pytest.mark.parametrize("file", FILES[:3])
def test_a_flipped_bit_in_pixels_labels_or_digests_is_detected(
    make_folder: MakeFolder, capsys: pytest.CaptureFixture[str], file: str, position: int
) -> None:
    root = make_folder()
    path = opened(root).folder / file
    expected = path.read_bytes()
    flip(path, min(position, len(expected) - 1))
    opened(root)
    assert path.read_bytes() == expected
    assert f"{'has' if file == FILES[0] else 'have'} changed" in capsys.readouterr().err


@pytest.mark.parametrize(("old", "new"), [("red/000", "red/999"), ('"schema_version":5', '"schema_version":1')])
def test_an_index_that_was_edited_or_has_another_version_is_not_trusted(
    make_folder: MakeFolder, old: str, new: str
) -> None:
    root = make_folder()
    path = opened(root).folder / "cache.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    opened(root)
    assert path.read_text() == text


def test_an_index_of_another_version_is_not_trusted_even_if_it_is_whole(make_folder: MakeFolder) -> None:
    root = make_folder()
    path = opened(root).folder / "cache.json"
    index = json.loads(path.read_text())
    index["schema_version"] += 1
    del index["sha256"]
    index["sha256"] = hashlib.sha256(json.dumps(index, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps(index))
    opened(root)
    assert json.loads(path.read_text())["schema_version"] == index["schema_version"] - 1


@pytest.mark.parametrize("reached", [True, False], ids=["reached the disk", "did not"])
def test_after_a_reboot_pixels_that_may_not_have_reached_the_disk_are_read_again(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reached: bool
) -> None:
    root, boot = make_folder(), tmp_path / "boot_id"
    boot.write_text("first\n")
    monkeypatch.setattr(cachefiles, "BOOT_ID", boot)
    if not reached:
        monkeypatch.setattr(cache_module, "settle", lambda folder: None)
    index = opened(root).folder / "cache.json"
    first = index.stat().st_ino
    opened(root)
    assert index.stat().st_ino == first
    assert ("boot" in json.loads(index.read_text())) is not reached
    boot.write_text("second\n")
    opened(root)
    assert (index.stat().st_ino == first) is reached


def test_a_disk_that_fails_to_store_the_pixels_leaves_no_trusted_cache(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(cachefiles.systems, "sync_files", fails)
    cache = opened(make_folder())
    # this run has the pixels in memory, the next one reads the files again
    assert np.array(cache.splits["train"].images_NHWC).any()
    assert not (cache.folder / "cache.json").exists()


def test_a_cache_that_replaced_another_is_left_alone_by_the_sync_thread_of_that_one(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "settle", lambda folder: None)
    index = opened(make_folder()).folder / "cache.json"
    waiting, another = threading.Event(), b"another cache"
    monkeypatch.setattr(cachefiles.systems, "sync_files", lambda folder: waiting.wait(10))
    thread = settle(index.parent)
    index.write_bytes(another)
    waiting.set()
    thread.join()
    assert index.read_bytes() == another


def test_a_cache_made_read_only_while_it_is_synced_is_left_unchanged(
    as_nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = as_nobody / "closed"
    index = closed / "cache" / "cache.json"
    index.parent.mkdir(parents=True)
    unsettled = json.dumps({"boot": "this one", "sha256": ""})
    index.write_text(unsettled)
    monkeypatch.setattr(cachefiles.systems, "sync_files", lambda folder: closed.chmod(0))
    # an error in the thread fails this test
    settle(index.parent).join()
    closed.chmod(0o755)
    assert index.read_text() == unsettled


def test_without_a_boot_id_the_files_are_synced_at_once(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cachefiles, "BOOT_ID", tmp_path / "none")
    synced: list[Path] = []
    monkeypatch.setattr("vivace.systems.sync_files", synced.append)
    index = opened(make_folder()).folder / "cache.json"
    assert len(synced) == 1
    assert "boot" not in json.loads(index.read_text())


def test_a_full_disk_is_reported_before_anything_is_written(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(cachebuild.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"the disk is too full for the cache: 18,432 bytes are needed, 1,000 are free"):
        opened(root)
    assert (list_caches(default_cache_dir()), left_overs()) == ([], [])


def test_a_disk_that_fills_while_writing_leaves_nothing_and_the_old_cache_whole(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    before = opened(root)
    old = (before.folder / "cache.json").read_bytes()
    change_contents(root)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(
        DataError, match=r"^the cache can't be written: .* \(No space left on device\)\. Choose another"
    ):
        opened(root)
    assert left_overs() == []
    assert (before.folder / "cache.json").read_bytes() == old


def test_disk_space_for_all_pixels_is_reserved_before_the_first_is_written(tmp_path: Path) -> None:
    # writing to the map of a sparse file on a full disk would kill the process
    allocate(tmp_path / "x.npy", (100, 32, 32, 3))
    assert (tmp_path / "x.npy").stat().st_blocks * 512 >= 100 * 32 * 32 * 3


def test_a_cache_folder_that_cant_be_written_is_reported(make_folder: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"the cache can't be written: .*file/images.* `cache_dir`"):
        opened(make_folder(), cache_dir=tmp_path / "file")


def test_a_finished_cache_is_read_from_a_read_only_folder(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    opened(root)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert len(opened(root).splits["train"].names) == 24


KILLED = """
import os, signal, sys
from pathlib import Path
from vivace.data.caching.cache import open_cache
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
stop = lambda done, total: os.kill(os.getpid(), signal.SIGKILL)
open_cache(open_source(sys.argv[1]), Preprocess(size=16, store_size=16), progress=stop)
"""


def test_an_incomplete_build_is_not_used_and_is_removed(make_folder: MakeFolder) -> None:
    root = make_folder()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(root)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(left_overs()) == 1
    assert list_caches(default_cache_dir()) == []
    assert len(opened(root).splits["train"].names) == 24
    assert left_overs() == []


def test_two_that_build_at_once_decode_once_and_get_the_same(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    source, together, built = open_source(root), threading.Barrier(3), []
    signature, build = cache_module.signature_of, cache_module.build

    def meet(*arguments: object) -> str:
        together.wait(timeout=10)
        return signature(*arguments)  # type: ignore[arg-type]

    def count(*arguments: object) -> None:
        built.append(1)
        build(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_module, "signature_of", meet)
    monkeypatch.setattr(cache_module, "build", count)
    with ThreadPoolExecutor(3) as pool:
        caches = [pool.submit(open_cache, source, PREPROCESS) for _ in range(3)]
    assert len({cache.result().fingerprint for cache in caches}) == 1
    assert len(built) == 1


@pytest.mark.parametrize("kept", [[0, 2, 3, 2998, 2999], [], list(range(1, 3000)), list(range(3000))])
def test_rows_are_left_out_in_place(tmp_path: Path, kept: list[int]) -> None:
    path = tmp_path / "x.npy"
    images = allocate(path, (3000, 2, 2, 3))
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape)
    expected = np.array(images)[kept]
    keep_rows(path, np.asarray(kept, dtype=np.int64))
    np.testing.assert_array_equal(np.load(path), expected)
    assert path.stat().st_size == 128 + expected.nbytes


def test_building_a_cache_does_not_wait_for_the_disk(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(per_class=20)
    (root / "red" / "bad.png").write_bytes(b"x")

    def waiting(self: np.memmap) -> None:
        raise AssertionError("the rows that are left wait for the disk in settle's thread")

    monkeypatch.setattr(np.memmap, "flush", waiting)
    assert len(opened(root, on_bad_image="skip").splits["train"].names) > 0


def test_worker_processes_give_what_threads_give(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(per_class=20)
    (root / "red" / "bad.png").write_bytes(b"x")
    in_threads = opened(root, on_bad_image="skip")
    remove_caches(default_cache_dir(), in_threads.folder.name)
    monkeypatch.setattr(workers, "MIN_FILES_FOR_PROCESSES", 1)
    in_processes = opened(root, on_bad_image="skip", num_workers=2)
    assert (in_processes.fingerprint, in_processes.audit) == (in_threads.fingerprint, in_threads.audit)
    np.testing.assert_array_equal(in_processes.splits["train"].images_NHWC, in_threads.splits["train"].images_NHWC)


def test_names_that_are_not_utf8_go_through(make_folder: MakeFolder, no_decoding: Callable[[], None]) -> None:
    root = make_folder()
    name = os.fsdecode(b"caf\xe9\n.png")
    (root / "red" / "000.png").rename(root / "red" / name)
    assert f"red/{name}" in opened(root).splits["train"].names
    no_decoding()
    assert f"red/{name}" in opened(root).splits["train"].names


@pytest.mark.real
def test_ten_thousand_real_photos_are_what_decoding_gives(real_data: Path) -> None:
    root = real_data / "cifar10" / "test"
    source = open_source(root, require_train=False)
    preprocess = Preprocess(size=32, store_size=32)
    cache = open_cache(source, preprocess, require_train=False)
    assert cache.audit.findings == ()
    split = cache.splits["train"]
    assert len(split.names) == 10_000
    for index in range(0, 10_000, 250):
        np.testing.assert_array_equal(split.images_NHWC[index], preprocess.load(root / split.names[index]))
