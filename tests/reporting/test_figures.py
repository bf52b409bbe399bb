"""Figures are drawn from plain data, whatever the class names; errors say why a figure can't be drawn."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vivace.errors import MissingExtra
from vivace.reporting import canvas, figures

HEADER = "epoch,step,seconds,lr,train_loss,train_top1,val_loss,val_top1,images_per_second\n"
# scripts without a font, what looks like a formula, line ends, bytes that are not UTF-8, an empty name, wide and long
STRANGE = ("飞机", "चिड़िया", "$x^2$", "a\nb\tc", "caf\udce9", "", "W" * 300, "$\\frac$")


def opened(path: Path) -> Image.Image:
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        return image


def share_of_ink(path: Path) -> float:
    return float((np.asarray(opened(path).convert("L")) < 250).mean())


def write_csv(path: Path, num_rows: int) -> Path:
    rows = (
        f"{n},{n * 10},{n * 3},0.01,{2 / n},{1 - 1 / n},{3 / n},{1 - 2 / (n + 1)},9000\n"
        for n in range(1, num_rows + 1)
    )
    path.write_text(HEADER + "".join(rows))
    return path


@pytest.mark.parametrize("num_rows", [0, 1, 3, 200])
def test_curves_of_short_and_long_runs_are_drawn(tmp_path: Path, num_rows: int) -> None:
    figures.curves(write_csv(tmp_path / "metrics.csv", num_rows), tmp_path / "new" / "curves.png")
    assert opened(tmp_path / "new" / "curves.png").width > 1000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curves.png"]


def test_a_gap_or_a_row_truncated_does_not_end_the_curves(tmp_path: Path) -> None:
    whole = write_csv(tmp_path / "whole.csv", 3)
    figures.curves(whole, tmp_path / "whole.png")
    cut = tmp_path / "cut.csv"
    cut.write_text(whole.read_text() + "4,40,12,0.0")
    figures.curves(cut, tmp_path / "cut.png")
    assert (tmp_path / "cut.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    gap = tmp_path / "gap.csv"
    gap.write_text(whole.read_text() + "4,40,12,0.01,nan,0.5,,oops,9000\n")
    figures.curves(gap, tmp_path / "gap.png")


def test_the_accuracy_shown_is_that_of_the_weights_in_the_bundle(tmp_path: Path) -> None:
    epochs, top1 = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.9, 0.8])
    assert figures._saved_title(epochs, top1, 2) == "in the bundle: 80.00 %, epoch 3\nbest: 90.00 %, epoch 2"
    assert figures._saved_title(epochs, top1, 1) == "in the bundle: 90.00 %, epoch 2"
    assert figures._saved_title(epochs, np.full(3, np.nan), 1) == ""
    table = write_csv(tmp_path / "metrics.csv", 3)
    drawn = {}
    for saved_epoch in (None, 3.0, 2.0):
        figures.curves(table, tmp_path / "curves.png", saved_epoch=saved_epoch)
        drawn[saved_epoch] = (tmp_path / "curves.png").read_bytes()
    # by default it is the last one
    assert drawn[None] == drawn[3.0] != drawn[2.0]


@pytest.mark.parametrize("num_classes", [2, 5, 10, 26, 100, 111])
def test_confusions_of_few_and_many_classes_are_drawn(tmp_path: Path, num_classes: int) -> None:
    counts = np.random.default_rng(0).integers(0, 20, (num_classes, num_classes)) + 200 * np.eye(num_classes, dtype=int)
    figures.confusion(counts.tolist(), [f"class {n}" for n in range(num_classes)], tmp_path / "confusion.png")
    width, height = opened(tmp_path / "confusion.png").size
    assert 500 < height < width < 2200


def test_numbers_of_many_digits_and_a_class_without_images_are_drawn(tmp_path: Path) -> None:
    figures.confusion([[123_456, 7], [0, 0]], ["many", "none"], tmp_path / "confusion.png")


def test_strange_class_names_do_not_crash_and_letters_without_a_font_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(STRANGE)
    figures.confusion(np.eye(count, dtype=int), STRANGE, tmp_path / "confusion.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: boxes are drawn for characters that no installed font has, in confusion.png: ")
    # of a script that matplotlib's font lacks, and none of the fonts for Chinese has
    assert "च" in line
    figures.confusion(np.eye(2, dtype=int), ["cat", "dog"], tmp_path / "confusion.png")
    assert capsys.readouterr().err == ""
    image = np.zeros((8, 8, 3), np.uint8)
    rows = [{"image": image, "label": name, "predicted": name, "probability": 0.5} for name in STRANGE]
    figures.mistakes(rows, tmp_path / "mistakes.png")


def test_long_names_keep_their_ends_and_stay_in_their_place(tmp_path: Path) -> None:
    assert canvas.short_name("Herbaceous vegetation number 17") == "Herbaceous…ber 17"
    assert canvas.width_of(canvas.short_name("很长的名字" * 5)) <= canvas.MAX_NAME_WIDTH
    for name, letters in (("short.png", 20), ("long.png", 300)):
        figures.confusion(np.eye(3, dtype=int), ["x" * letters] * 3, tmp_path / name)
    assert opened(tmp_path / "short.png").size == opened(tmp_path / "long.png").size


@pytest.mark.parametrize("channels", [1, 3])
def test_mistakes_show_their_images(tmp_path: Path, channels: int) -> None:
    dark = np.zeros((16, 16, channels), np.uint8)
    rows = [{"image": dark, "label": "cat", "predicted": "dog", "probability": 0.987}]
    figures.mistakes(rows, tmp_path / "one.png")
    figures.mistakes(rows * 36, tmp_path / "many.png")
    assert share_of_ink(tmp_path / "many.png") > 0.5
    assert opened(tmp_path / "many.png").height > 4 * opened(tmp_path / "one.png").height


def test_grey_keeps_its_scale(tmp_path: Path) -> None:
    """A uniform image would look black if it were stretched to its own darkest and lightest values."""
    light = np.full((16, 16, 1), 230, np.uint8)
    figures.mistakes([{"image": light, "label": "a", "predicted": "b", "probability": 1}], tmp_path / "light.png")
    shades, counts = np.unique(np.asarray(opened(tmp_path / "light.png").convert("L")), return_counts=True)
    assert counts[shades == 230].sum() > 0.05 * counts.sum()


def test_no_mistakes_are_a_picture_too(tmp_path: Path) -> None:
    figures.mistakes([], tmp_path / "none.png")
    assert share_of_ink(tmp_path / "none.png") < 0.01


def settings() -> dict[str, Any]:
    """matplotlib's, without the backend: asking for it would choose one."""
    import matplotlib

    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}


def test_drawing_touches_no_global_state(tmp_path: Path) -> None:
    before, modules = settings(), set(sys.modules)
    figures.confusion([[1, 0], [0, 1]], ["a", "b"], tmp_path / "confusion.png")
    assert settings() == before
    assert "matplotlib.pyplot" not in set(sys.modules) - modules


def test_without_matplotlib_the_error_says_how_to_fix_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match=r"drawing figures needs matplotlib.*pip install 'vivace\[report\]'"):
        figures.confusion([[1]], ["a"], tmp_path / "confusion.png")
