"""The cache and the audit: each image decoded once, nothing bad believed, nothing changed unnoticed."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivace.data import cache as cache_module
from vivace.data import workers
from vivace.data.cache import Cache, audit_source, open_cache
from vivace.data.cachedir import default_cache_dir, list_caches, remove_cache
from vivace.data.decode import MAX_PIXELS, read_image
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import CacheMismatch, DataError, ImageError

MakeFolder = Callable[..., Path]
PREPROCESS = Preprocess(size=16, store_size=16)


def opened(root: Path, **options: object) -> Cache:
    return open_cache(open_source(root), PREPROCESS, **options)  # type: ignore[arg-type]


def huge_png(width: int, height: int) -> bytes:
    """A valid PNG header that promises more pixels than anyone should decode."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


BAD: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "not_an_image": lambda path: path.write_bytes(b"this is text, not a picture\n"),
    "extension_mismatch": lambda path: Image.open(path).convert("RGB").save(path, "BMP"),
    "bomb": lambda path: path.write_bytes(huge_png(40_000, 40_000)),
    "format_not_allowed": lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "too_small": lambda path: Image.new("RGB", (1, 1)).save(path),
    "extreme_aspect": lambda path: Image.new("RGB", (1000, 10)).save(path),
}


@pytest.mark.parametrize("problem", BAD)
def test_a_bad_image_is_quarantined_and_skipped_only_when_allowed(make_folder: MakeFolder, problem: str) -> None:
    root = make_folder()
    BAD[problem](root / "red" / "003.png")
    with pytest.raises(DataError, match=r"1 images of colours can't be used: .*003\.png.* --on-bad-image skip"):
        opened(root)
    cache = opened(root, on_bad_image="skip")
    assert [finding.kind for finding in cache.audit.of("quarantine")] == [problem]
    assert cache.audit.quarantined == {"train:red/003.png"}
    split = cache.splits["train"]
    assert len(split.labels_N) == len(split.images_NHWC) == len(split.names) == 23
    for name, stored in zip(split.names, split.images_NHWC, strict=True):
        np.testing.assert_array_equal(stored, PREPROCESS.load(root / name))


def test_a_bomb_is_refused_by_its_header_before_anything_is_decoded() -> None:
    with pytest.raises(ImageError, match=rf"12000 × 12000, the cap is {MAX_PIXELS:,}") as error:
        read_image(huge_png(12_000, 12_000))
    assert error.value.problem == "bomb"


@pytest.mark.parametrize("magic", [b"%!PS-Adobe", b"%PDF-1.7", b"SIMPLE  =                    T"])
def test_formats_that_run_code_or_are_no_photos_are_not_opened(magic: bytes) -> None:
    with pytest.raises(ImageError, match="the format is not allowed"):
        read_image(magic + b" " * 3000)


def test_a_file_that_cant_be_read_is_quarantined(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder()
    source = open_source(root)
    # it vanishes between listing and reading: the tests may run as root, whom rights do not stop
    (root / "red" / "000.png").unlink()
    audit = audit_source(source, PREPROCESS)
    assert [finding.kind for finding in audit.of("quarantine")] == ["unreadable"]


def test_exact_copies_with_one_label_are_told(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "red" / "copy.png").write_bytes((root / "red" / "000.png").read_bytes())
    findings = opened(root).audit.findings
    assert [(finding.kind, finding.severity) for finding in findings] == [("duplicate", "warning")]


def test_copies_with_different_labels_are_both_quarantined(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "blue" / "copy.png").write_bytes((root / "red" / "000.png").read_bytes())
    with pytest.raises(DataError, match="labelled blue and red"):
        opened(root)
    cache = opened(root, on_bad_image="skip")
    assert cache.audit.quarantined == {"train:blue/copy.png", "train:red/000.png"}
    assert len(cache.splits["train"].names) == 23


def test_an_image_in_train_and_test_is_refused_unless_allowed(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "test"))
    (root / "test" / "red" / "copy.png").write_bytes((root / "train" / "red" / "000.png").read_bytes())
    with pytest.raises(DataError, match=r"the same image stands in train and test: .* --allow-leaks"):
        opened(root)
    assert len(opened(root, allow_leaks=True).splits["test"].names) == 25


def test_a_class_left_with_too_few_images_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder(per_class=2)
    (root / "red" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match="'red' has 1, at least 2 are needed"):
        opened(root, on_bad_image="skip")


def test_a_second_opening_decodes_nothing(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder()
    first = opened(root)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache_module, "decode_files", refuse)
    second = opened(root)
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.splits["train"].images_NHWC, first.splits["train"].images_NHWC)


def test_a_changed_file_is_noticed(make_folder: MakeFolder) -> None:
    root = make_folder()
    cache = opened(root)
    cache.check_files()
    Image.new("RGB", (20, 20), (1, 2, 3)).save(root / "red" / "000.png")
    with pytest.raises(CacheMismatch, match="the images of colours have changed since they were cached"):
        cache.check_files()
    again = opened(root)
    assert again.fingerprint != cache.fingerprint
    assert (again.splits["train"].images_NHWC[again.splits["train"].names.index("red/000.png")] == [1, 2, 3]).all()


def test_a_vanished_or_added_file_is_noticed(make_folder: MakeFolder) -> None:
    root = make_folder()
    cache = opened(root)
    (root / "red" / "000.png").rename(root / "red" / "new.png")
    with pytest.raises(CacheMismatch):
        cache.check_files()
    assert "red/new.png" in opened(root).splits["train"].names


def test_a_touched_file_with_the_same_contents_keeps_the_fingerprint(make_folder: MakeFolder) -> None:
    root = make_folder()
    before = opened(root).fingerprint
    os.utime(root / "red" / "000.png", ns=(1, 1))
    assert opened(root).fingerprint == before


@pytest.mark.parametrize("damage", ["truncate", "index", "remove"])
def test_a_damaged_cache_is_made_again(make_folder: MakeFolder, damage: str) -> None:
    root = make_folder()
    cache = opened(root)
    expected = np.array(cache.splits["train"].images_NHWC)
    pixels, index = cache.folder / "train.npy", cache.folder / "cache.json"
    if damage == "truncate":
        os.truncate(pixels, pixels.stat().st_size // 2)
    elif damage == "index":
        index.write_text(index.read_text().replace("red/000", "red/999"))
    else:
        pixels.unlink()
    again = opened(root)
    np.testing.assert_array_equal(again.splits["train"].images_NHWC, expected)
    assert "red/000.png" in again.splits["train"].names


def test_a_full_disk_is_told_before_anything_is_written(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"the disk is too full for the cache: 18,432 bytes are needed, 1,000 are free"):
        opened(root)


def test_worker_processes_give_what_threads_give(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(per_class=6)
    (root / "red" / "bad.png").write_bytes(b"x")
    in_threads = opened(root, on_bad_image="skip")
    remove_cache(default_cache_dir(), in_threads.folder.name)
    monkeypatch.setattr(workers, "MIN_FILES_FOR_PROCESSES", 1)
    monkeypatch.setattr(workers, "BLOCK", 4)
    seen: list[tuple[int, int]] = []
    in_processes = opened(
        root, on_bad_image="skip", num_workers=2, progress=lambda done, total: seen.append((done, total))
    )
    assert in_processes.fingerprint == in_threads.fingerprint
    assert in_processes.audit == in_threads.audit
    assert seen[-1] == (19, 19)


def test_a_worker_that_dies_is_told(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder()
    monkeypatch.setattr(workers, "MIN_FILES_FOR_PROCESSES", 1)
    monkeypatch.setattr(
        workers,
        "_start_child",
        lambda *_: subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit(3)"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ),
    )
    with pytest.raises(DataError, match="a decoding worker died"):
        opened(root, num_workers=2)
    assert list_caches(default_cache_dir()) == []


def test_without_a_home_the_cache_goes_to_a_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("VIVACE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_cache_dir().name == f"vivace-{os.getuid()}"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert default_cache_dir().name == f"vivace-{os.getuid()}"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "vivace"


def test_caches_are_listed_and_removed(make_folder: MakeFolder) -> None:
    cache = opened(make_folder())
    (entry,) = list_caches(default_cache_dir())
    assert (entry.name, entry.num_images) == (cache.folder.name, 24)
    assert entry.num_bytes > 24 * 16 * 16 * 3
    remove_cache(default_cache_dir(), entry.name)
    assert list_caches(default_cache_dir()) == []


def test_an_audit_goes_to_json_and_back(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "red" / "notes.txt").write_text("ignored")
    (root / "red" / "000.png").write_bytes(b"")
    audit = audit_source(open_source(root), PREPROCESS)
    assert {finding.kind for finding in audit.findings} == {"empty", "ignored"}
    assert type(audit).from_dict(json.loads(json.dumps(audit.to_dict()))) == audit


@pytest.mark.real
def test_the_flowers_have_one_contradiction_and_two_copies(real_data: Path) -> None:
    audit = audit_source(open_source(real_data / "flowers"), PREPROCESS)
    assert sorted(finding.kind for finding in audit.findings) == ["contradiction", "duplicate", "duplicate"]
