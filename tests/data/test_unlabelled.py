"""Images in no class folders are audited without labels, and that is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import vivace
from answers import last_answer
from vivace.cli import main
from vivace.data.layouts.unlabelled import open_unlabelled
from vivace.errors import ConfigError, DataError

MakeFolder = Callable[..., Path]


def photo(path: Path, seed: int, *, mirrored: bool = False) -> Path:
    """A picture with detail enough to be told from others."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    (ImageOps.mirror(image) if mirrored else image).save(path)
    return path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Ten pictures, of which one is there again, one mirrored, one cut short, beside a text."""
    root = tmp_path / "flat"
    for number in range(10):
        photo(root / f"{number}.png", number)
    shutil.copy(root / "3.png", root / "again.png")
    photo(root / "mirrored.png", 5, mirrored=True)
    data = (root / "7.png").read_bytes()
    (root / "7.png").write_bytes(data[: len(data) // 2])
    (root / "notes.txt").write_text("not a picture")
    return root


def test_a_flat_folder_is_looked_at_without_labels(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache-dir", str(tmp_path / "cache")]
    assert main(["audit", str(flat), *cache, "--json", "--report", str(tmp_path / "page.html")]) == 0
    captured = capsys.readouterr()
    told = last_answer(captured.out)
    assert (told["num_images"], told["has_labels"]) == (12, False)
    found = {finding["kind"]: finding for finding in told["findings"]}
    assert found.keys() == {"truncated", "duplicate", "near_duplicate", "ignored"}
    assert found["truncated"]["names"] == ["train:7.png"]
    assert set(found["duplicate"]["names"]) == {"train:3.png", "train:again.png"}
    assert set(found["near_duplicate"]["names"]) == {"train:5.png", "train:mirrored.png"}
    assert "refuses this data: there are no class folders" in told["train"]
    assert "images are looked at without labels" in captured.err
    assert "These images have no labels" in (tmp_path / "page.html").read_text()
    assert main(["audit", str(flat), *cache]) == 0
    assert "labels, and one image under two of them, were not looked at" in capsys.readouterr().out


def test_unlabelled_splits_are_compared_with_each_other(flat: Path, tmp_path: Path) -> None:
    root = tmp_path / "splits"
    for number in range(4):
        photo(root / "train" / f"{number}.png", number)
        photo(root / "test" / f"{number + 10}.png", number + 10)
    shutil.copy(root / "train" / "1.png", root / "test" / "leak.png")
    photo(root / "test" / "mirror.png", 2, mirrored=True)
    found = vivace.audit(root, cache_dir=tmp_path / "cache", quiet=True)
    kinds = {finding.kind: finding.names for finding in found.findings}
    assert kinds["leak"] == ("train:train/1.png",)
    assert set(kinds["near_leak"]) == {"train:train/2.png", "test:test/mirror.png"}
    assert not found.has_labels


def test_an_archive_of_images_and_a_table_beside_them(flat: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", flat)
    found = vivace.audit(archive, cache_dir=tmp_path / "cache", quiet=True)
    assert (found.data, found.has_labels) == ("packed", False)
    (flat / "labels.csv").write_text("file,label\n0.png,a\n1.png,b\n")
    source = open_unlabelled(flat)
    assert source is not None
    assert any("give the table of labels as `data`: labels.csv" in note for note in source.notes)


def test_what_needs_labels_is_refused(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`fix` writes a table of labels, and the images have none"):
        vivace.audit(flat, fix=tmp_path / "fixed.csv", cache_dir=tmp_path / "cache", quiet=True)
    with pytest.raises(DataError, match="there are no class folders in"):
        vivace.train(flat, run=tmp_path / "run", cache_dir=tmp_path / "cache", quiet=True)


def test_class_folders_are_never_taken_for_images_without_labels(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(per_class=2)
    assert open_unlabelled(folder) is None
    found = vivace.audit(folder, cache_dir=tmp_path / "cache", quiet=True)
    assert found.has_labels
    empty = tmp_path / "empty"
    empty.mkdir()
    assert open_unlabelled(empty) is None
    with pytest.raises(DataError, match="no class folders"):
        vivace.audit(empty, cache_dir=tmp_path / "cache", quiet=True)
