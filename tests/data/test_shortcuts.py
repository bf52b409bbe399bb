"""Shortcuts: facts beside the picture that tell the classes apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vivace
from vivace.data.shortcuts import told_apart


def test_facts_that_say_nothing_tell_no_more_than_chance() -> None:
    rng = np.random.default_rng(0)
    found = told_apart("size", rng.normal(size=(400, 3)), np.arange(400) % 4)
    assert found.low < 0.25 < found.high
    assert found.chance == 0.25


def test_a_single_value_that_differs_is_told() -> None:
    # half of the images of one class are 500 wide, and none of the other: a jump that quantiles alone would blur
    labels = np.arange(400) % 2
    width = np.where((labels == 1) & (np.arange(400) % 4 == 1), 500, np.random.default_rng(0).integers(400, 600, 400))
    found = told_apart("size", width[:, None].astype(float), labels)
    assert found.low > 0.65


def write(root: Path, shortcut: str) -> Path:
    rng = np.random.default_rng(0)
    for label, number in ((label, number) for label in "ab" for number in range(30)):
        side = (40, 40 + 8 * (label == "b")) if shortcut == "size" else (40, 40)
        pixels = rng.integers(0, 256, (*side, 3), dtype=np.uint8)
        if shortcut == "border" and label == "b":
            pixels[:3] = pixels[-3:] = pixels[:, :3] = pixels[:, -3:] = 0
        if shortcut == "colour" and label == "b":
            pixels //= 2
        folder = root / "train" / label
        folder.mkdir(parents=True, exist_ok=True)
        ending = "bmp" if shortcut == "format" and label == "b" else "png"
        Image.fromarray(pixels).save(folder / f"{number}.{ending}")
    return root


@pytest.mark.parametrize("shortcut", ["size", "format", "border", "colour", "none"])
def test_the_audit_names_each_shortcut_in_a_line(tmp_path: Path, shortcut: str) -> None:
    root = write(tmp_path / "data", shortcut)
    found = vivace.audit(root, size=40, near=False, cache_dir=tmp_path / "cache", quiet=True)
    lines = [finding.message for finding in found.findings if finding.kind == "shortcut"]
    kinds = [one.kind for one in found.shortcuts]
    assert (shortcut in kinds) == (shortcut != "none")
    assert len(lines) == len(kinds)
    # what changes one of these changes the others a little; nothing here changes the size beside size
    assert "size" not in kinds or shortcut == "size"
    for line in lines:
        assert "can be told" in line
        assert "chance 50 %" in line
    if shortcut == "none":
        assert kinds == []


def test_few_images_say_nothing(tmp_path: Path) -> None:
    root = write(tmp_path / "data", "border")
    for path in sorted((root / "train" / "b").iterdir())[15:]:
        path.unlink()
    found = vivace.audit(root, size=40, near=False, cache_dir=tmp_path / "cache", quiet=True)
    assert found.shortcuts == ()


def test_arrays_have_no_facts_of_files() -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    images[30:, 0] = 255
    images[30:, -1] = 255
    images[30:, :, 0] = 255
    images[30:, :, -1] = 255
    found = vivace.audit((images, np.arange(60) // 30), size=16, near=False, quiet=True)
    assert {one.kind for one in found.shortcuts} <= {"border", "colour"}
    assert "border" in {one.kind for one in found.shortcuts}
