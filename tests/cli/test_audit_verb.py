"""What `vivace audit` says that `vivace train` does."""

from __future__ import annotations

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
