"""The audit: which problems it finds in a data set, how serious they are, and what training does about them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vivace.cli import main
from vivace.data.audit import Audit, Finding, audit_images, write_left_out
from vivace.data.caching.cache import Cache, audited_cache, open_cache
from vivace.data.preprocess import Preprocess
from vivace.data.sources import open_source
from vivace.errors import DataError
from vivace.training.train import train

MakeFolder = Callable[..., Path]
PREPROCESS = Preprocess(size=16, store_size=16)


def opened(root: Path, **options: object) -> Cache:
    return open_cache(open_source(root), PREPROCESS, **options)  # type: ignore[arg-type]


def kinds(audit: Audit) -> list[tuple[str, str]]:
    return sorted((finding.kind, finding.severity) for finding in audit.findings)


def copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


BAD: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "not_an_image": lambda path: path.write_bytes(b"this is text, not a picture\n"),
    "bomb": lambda path: os.truncate(path, (1 << 30) + 1),
    "format_not_allowed": lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "too_small": lambda path: Image.new("RGB", (1, 1)).save(path),
    "extreme_aspect": lambda path: Image.new("RGB", (1000, 10)).save(path),
}


@pytest.mark.parametrize("problem", BAD)
def test_a_bad_image_is_left_out_and_refused_only_when_asked(make_folder: MakeFolder, problem: str) -> None:
    root = make_folder()
    BAD[problem](root / "red" / "003.png")
    message = r"^1 of 24 images of colours can.t be used: .*003\.png.*[^.]\. Correct them, .* `on_bad_image='skip'`\."
    with pytest.raises(DataError, match=message):
        opened(root, on_bad_image="refuse")
    cache = opened(root)
    assert kinds(cache.audit) == [(problem, "quarantine")]
    assert cache.audit.quarantined == {"train:red/003.png"}
    split = cache.splits["train"]
    assert len(split.labels_N) == len(split.images_NHWC) == len(split.names) == len(split.digests_N) == 23
    for name, label, stored in zip(split.names, split.labels_N, split.images_NHWC, strict=True):
        np.testing.assert_array_equal(stored, PREPROCESS.load(root / name))
        assert cache.classes[label] == name.split("/")[0]


def test_files_with_the_extension_of_another_format_are_read_and_reported(
    make_folder: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder()
    before = opened(root).splits["train"].images_NHWC[:]
    for index in range(4):
        path = root / "red" / f"00{index}.png"
        path.rename(path.with_suffix(".jpg"))
    capsys.readouterr()
    cache = opened(root)
    assert "4 files have another format's extension; they are PNG" in capsys.readouterr().err
    np.testing.assert_array_equal(np.sort(cache.splits["train"].images_NHWC[:], axis=0), np.sort(before, axis=0))
    (finding,) = cache.audit.findings
    assert (finding.kind, finding.severity, len(finding.names)) == ("extension_mismatch", "warning", 4)
    assert finding.message.startswith("4 files have another format's extension; they are PNG and were read as PNG: ")


def grey_tiffs(folder: Path, count: int, scale: float, dtype: type = np.float32, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        noise = np.random.default_rng(index).integers(0, 256, (20, 20))
        Image.fromarray((noise * scale).astype(dtype)).save(folder / f"{index:03d}.tif")


def test_a_class_that_is_blank_after_decoding_is_refused_and_a_few_blank_images_are_reported(
    make_folder: MakeFolder,
) -> None:
    root = make_folder()
    # floats so small that they vanish in 8 bits
    grey_tiffs(root / "dark", 6, 1e-6)
    grey_tiffs(root / "dark", 4, 1 / 255, first=6)
    message = r"^colours has images without content: 6 of 10 images of class dark are a single colour after decoding: "
    with pytest.raises(DataError, match=message):
        opened(root)
    grey_tiffs(root / "dark", 4, 1 / 255, first=10)
    grey_tiffs(root / "dark", 2, 1 / 255, first=4)
    cache = opened(root)
    (finding,) = cache.audit.findings
    assert (finding.kind, finding.severity) == ("one_colour", "warning")
    assert finding.message.startswith("4 of 14 images of class dark are a single colour after decoding: ")
    assert len(cache.splits["train"].names) == 24 + 14


def test_black_images_in_every_class_are_refused_and_are_not_a_contradiction(tmp_path: Path) -> None:
    for label in "abc":
        (tmp_path / label).mkdir()
        for index in range(4):
            info = PngInfo()
            info.add_text("note", f"{label}{index}")
            Image.new("L", (24, 24)).save(tmp_path / label / f"{index}.png", pnginfo=info)
    audit = audited_cache(open_source(tmp_path), PREPROCESS).audit
    assert kinds(audit) == [("one_colour", "refuse")] * 3
    with pytest.raises(DataError, match="4 of 4 images of class a are a single colour after decoding"):
        opened(tmp_path)


def test_images_that_were_scaled_by_different_depths_are_reported(make_folder: MakeFolder) -> None:
    root = make_folder()
    grey_tiffs(root / "grey", 3, 16, np.uint16)
    grey_tiffs(root / "grey", 2, 257, np.uint16, first=3)
    (finding,) = opened(root).audit.findings
    assert (finding.kind, finding.severity, len(finding.names)) == ("mixed_depth", "warning", 5)
    assert "(3 by 4,095, 2 by 65,535)" in finding.message


def test_copies_are_found_by_their_pixels(make_folder: MakeFolder) -> None:
    root = make_folder()
    image = Image.open(root / "red" / "000.png")
    image.save(root / "red" / "copy.bmp")
    (finding,) = opened(root).audit.findings
    assert (finding.kind, finding.names) == ("duplicate", ("train:red/000.png", "train:red/copy.bmp"))
    image.save(root / "blue" / "copy.tif")
    (finding,) = audited_cache(open_source(root), PREPROCESS).audit.findings
    assert (finding.kind, finding.severity, len(finding.names)) == ("contradiction", "quarantine", 3)


def unreadable(root: Path) -> Path:
    """Replace a file by a folder: the tests may run as root, whom permissions do not stop."""
    path = root / "red" / "000.png"
    path.unlink()
    path.mkdir()
    return path


def test_a_file_that_cant_be_read_is_refused_even_where_bad_images_are_skipped(make_folder: MakeFolder) -> None:
    root = make_folder()
    source = open_source(root)
    unreadable(root)
    with pytest.raises(DataError, match=r"^1 files of colours can't be read: this is a folder: .*000\.png"):
        open_cache(source, PREPROCESS, on_bad_image="skip", allow_leaks=True)
    audit = audited_cache(source, PREPROCESS).audit
    assert kinds(audit) == [("unreadable", "refuse")]
    assert (audit.quarantined, audit.unreadable) == (frozenset(), {"train:red/000.png"})


def test_a_file_whose_permissions_were_fixed_is_read_although_size_and_time_are_the_same(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    locked, original = str(root / "red" / "000.png"), os.open

    def refuse(path: str, *arguments: int) -> int:
        if path == locked:
            raise PermissionError(13, "Permission denied")
        return original(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(DataError, match=r"can't be read: .*000\.png \(Permission denied\)\. Check its permissions"):
            opened(root)
    assert len(opened(root).splits["train"].names) == 24


def test_exact_copies_with_one_label_are_reported(make_folder: MakeFolder) -> None:
    root = make_folder()
    copy(root / "red" / "000.png", root / "red" / "copy.png")
    cache = opened(root)
    assert kinds(cache.audit) == [("duplicate", "warning")]
    assert cache.audit.findings[0].message == "duplicate images: train:red/000.png, train:red/copy.png"
    assert len(cache.splits["train"].names) == 25


def test_copies_with_different_labels_are_both_quarantined(make_folder: MakeFolder) -> None:
    root = make_folder()
    copy(root / "red" / "000.png", root / "blue" / "copy.png")
    with pytest.raises(
        DataError, match=r"^2 of 25 images of colours can't be used \(8 %; up to 5 % are left out\): the same"
    ):
        opened(root)
    cache = opened(root, on_bad_image="skip")
    assert cache.audit.quarantined == {"train:blue/copy.png", "train:red/000.png"}
    assert len(cache.splits["train"].names) == 23


@pytest.mark.parametrize("other", ["val", "test"])
def test_an_image_in_train_and_another_split_is_left_out_of_train(
    make_folder: MakeFolder, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(splits=("train", other))
    copy(root / "train" / "red" / "000.png", root / other / "red" / "copy.png")
    with pytest.raises(DataError, match=rf"the same image is in train and {other}: "):
        opened(root, on_bad_image="refuse")
    cache = opened(root)
    assert "warning: left out 1 of 49 images of colours: 1 leak" in capsys.readouterr().err
    assert kinds(cache.audit) == [("leak", "quarantine")]
    assert cache.audit.quarantined == {"train:train/red/000.png"}
    assert (len(cache.splits["train"].names), len(cache.splits[other].names)) == (23, 25)
    allowed = opened(root, on_bad_image="refuse", allow_leaks=True)
    assert kinds(allowed.audit) == [("leak", "warning")]
    assert (len(allowed.splits["train"].names), len(allowed.splits[other].names)) == (24, 25)


def test_more_than_a_twentieth_is_refused_unless_any_number_may_be_left_out(make_folder: MakeFolder) -> None:
    root = make_folder(per_class=20)
    for index in range(3):
        (root / "red" / f"{index:03d}.png").write_bytes(b"")
    assert len(opened(root).splits["train"].names) == 57
    (root / "red" / "003.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^4 of 60 images of colours can't be used \(7 %; up to 5 % are left out\)"):
        opened(root)
    assert len(opened(root, on_bad_image="skip").splits["train"].names) == 56


def test_what_is_left_out_is_listed_in_a_file(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(splits=("train", "test"))
    (root / "train" / "red" / "003.png").write_bytes(b"")
    copy(root / "train" / "red" / "000.png", root / "test" / "red" / "copy.png")
    audit = opened(root).audit
    write_left_out(audit, tmp_path / "left_out.csv")
    rows = list(csv.DictReader((tmp_path / "left_out.csv").read_text().splitlines()))
    assert [(row["split"], row["file"], row["reason"]) for row in rows] == [
        ("train", "train/red/003.png", "empty"),
        ("train", "train/red/000.png", "leak"),
    ]


def test_a_file_name_that_is_a_formula_is_escaped_in_the_list(tmp_path: Path) -> None:
    finding = Finding(kind="empty", severity="quarantine", names=("train:=1+1.png",), message="the file is empty")
    audit = Audit(num_images=1, findings=(finding,))
    write_left_out(audit, tmp_path / "left_out.csv")
    assert (tmp_path / "left_out.csv").read_text().splitlines()[1].startswith("train,'=1+1.png,")


def test_an_image_in_two_splits_with_two_labels_is_a_contradiction(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "test"))
    copy(root / "train" / "red" / "000.png", root / "test" / "blue" / "copy.png")
    cache = opened(root, on_bad_image="skip")
    assert kinds(cache.audit) == [("contradiction", "quarantine")]
    assert (len(cache.splits["train"].names), len(cache.splits["test"].names)) == (23, 24)


def test_an_image_in_val_and_test_alone_is_reported(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "val", "test"))
    copy(root / "val" / "red" / "000.png", root / "test" / "red" / "copy.png")
    assert kinds(opened(root).audit) == [("duplicate", "warning")]


def test_equal_bad_files_are_not_copies(make_folder: MakeFolder) -> None:
    root = make_folder()
    for label in ("red", "blue"):
        (root / label / "003.png").write_bytes(b"")
    assert kinds(opened(root, on_bad_image="skip").audit) == [("empty", "quarantine")] * 2


def test_a_class_left_with_too_few_images_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder(per_class=2)
    (root / "red" / "000.png").write_bytes(b"")
    # with only two classes none can be left out
    shutil.rmtree(root / "blue")
    with pytest.raises(DataError, match="'red' has 1, at least 2 are needed"):
        opened(root, on_bad_image="skip")


def test_a_split_of_which_nothing_is_left_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "test"), per_class=2)
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no image in the split test of colours can be used"):
        opened(root, on_bad_image="skip")
    # for evaluation, another split may be chosen
    assert len(opened(root, on_bad_image="skip", require_train=False).splits["test"].names) == 0


def test_an_audit_refuses_nothing_and_survives_json(make_folder: MakeFolder) -> None:
    root = make_folder(splits=("train", "val"))
    (root / "train" / "red" / "notes.txt").write_text("ignored")
    (root / "train" / "red" / "000.png").write_bytes(b"")
    copy(root / "train" / "red" / "001.png", root / "val" / "red" / "copy.png")
    audit = audited_cache(open_source(root), PREPROCESS).audit
    assert kinds(audit) == [("empty", "quarantine"), ("ignored", "warning"), ("leak", "quarantine")]
    assert audit.num_images == 49
    assert Audit.from_dict(json.loads(json.dumps(audit.to_dict()))) == audit
    # training reuses the cache that the audit built
    assert opened(root, on_bad_image="skip").audit == audit


def test_many_copies_are_named_in_part_and_on_one_line() -> None:
    names = [f"a/{index}\n.png" for index in range(9)]
    labels, digests = np.zeros(9, np.int64), np.full(9, b"0", dtype="S32")
    audit = audit_images({"train": names}, {"train": labels}, {"train": digests}, {"train": {}}, ["a"])
    (finding,) = audit.findings
    assert finding.message == r"duplicate images: 'train:a/0\n.png', 'train:a/1\n.png', 'train:a/2\n.png' and 6 more"
    assert len(finding.names) == 9


@pytest.mark.real
def test_the_flowers_have_one_contradiction_and_two_copies(real_data: Path) -> None:
    source = open_source(real_data / "flowers")
    assert kinds(audited_cache(source, PREPROCESS).audit) == [
        ("contradiction", "quarantine"),
        ("duplicate", "warning"),
        ("duplicate", "warning"),
    ]
    with pytest.raises(DataError, match=r"labelled roses and tulips: .* `on_bad_image='skip'`"):
        open_cache(source, PREPROCESS, on_bad_image="refuse")


def test_audit_says_what_train_does_and_leaves_the_images_for_it(
    make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(per_class=20)
    (root / "red" / "000.png").write_bytes(b"")
    arguments = ["audit", str(root), "--cache-dir", str(tmp_path / "cache")]
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "vivace train leaves out 1 of 60 images: 1 empty"
    assert told.err.startswith("data: 3 classes (blue … red), 54 train, 6 val (held out); 20 of each class")
    assert len(list((tmp_path / "cache" / "images").glob("colours-*"))) == 1
    for index in range(1, 9):
        (root / "red" / f"{index:03d}.png").write_bytes(b"")
    assert main(arguments) == 0
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("vivace train refuses this data: 9 of 60 images of colours can't be used (15 %")
    with pytest.raises(DataError) as error:
        train(root, quiet=True, run=tmp_path / "run", cache_dir=tmp_path / "cache")
    assert verdict.endswith(str(error.value))
    assert not (tmp_path / "run").exists()
    # training uses the images that the audit decoded
    assert len(list((tmp_path / "cache" / "images").glob("colours-*"))) == 1


@pytest.mark.parametrize("left", [0, 1])
def test_a_class_that_can_not_be_used_is_left_out_where_bad_images_are_skipped(
    make_folder: MakeFolder, capsys: pytest.CaptureFixture[str], left: int
) -> None:
    root = make_folder(splits=("train", "test"))
    for path in sorted((root / "train" / "green").iterdir())[left:]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="can't be used"):
        opened(root)
    cache = opened(root, on_bad_image="skip")
    assert cache.classes == ("blue", "red")
    for split in cache.splits.values():
        names = [cache.classes[label] for label in split.labels_N]
        assert names == [name.split("/")[-2] for name in split.names]
    # everything left out is still listed
    assert len(cache.audit.quarantined) == 8 - left
    assert "warning: left out 1 class with too few usable images: green" in capsys.readouterr().err
    # the images of the other two classes only
    (root / "train" / "red" / "000.png").write_bytes(b"")
    for path in sorted((root / "train" / "red").iterdir()):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a class has too few images: '(green|red)'"):
        opened(root, on_bad_image="skip")
