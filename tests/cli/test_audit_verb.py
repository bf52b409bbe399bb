"""What `vivace audit` says that `vivace train` does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vivace.cli import main


def test_the_images_that_train_takes_are_counted(
    make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder()
    for index in range(3):
        (root / "red" / f"{index}.txt").write_text("no image")
    assert main(["audit", str(root), "--quiet"]) == 0
    shown = capsys.readouterr()
    assert "skipped 3 of 27 files" in shown.err
    assert shown.out.splitlines()[-1] == "vivace train takes all 24 of these images"


def test_a_single_class_is_looked_at_and_the_reason_why_train_refuses_it_is_said(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder()
    red = tmp_path / "one" / "red"
    shutil.copytree(root / "red", red)
    (red / "broken.png").write_bytes(b"no image")
    assert main(["audit", str(red.parent)]) == 0
    shown = capsys.readouterr()
    assert "broken.png" in shown.out
    assert "1 class (red)" in shown.err
    assert shown.out.splitlines()[-1].startswith("vivace train refuses this data: there is only one class: 'red'")
