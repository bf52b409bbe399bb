"""The figures of the README: drawn from results, readable, and as old as these."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

import figures
from records import RESULTS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not any(RESULTS.glob("*/*.json")), reason="a source distribution holds no results")


@pytest.mark.parametrize("name", sorted(figures.FIGURES))
def test_a_figure_was_drawn_from_the_results_that_are_there(name: str) -> None:
    with Image.open(figures.FOLDER / name) as image:
        assert image.info["Source"] == figures.fingerprint(name), "run: python benchmarks/figures.py"
        assert image.size[0] >= 900
        # more than axes: each colour that is used for a curve or a point is there
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert (np.abs(pixels - np.array([0x00, 0x72, 0xB2])).sum(1) < 30).sum() > 200


@pytest.mark.parametrize("name", sorted(figures.FIGURES))
def test_every_label_lies_within_the_figure_and_none_hides_another(name: str) -> None:
    draw, results = figures.FIGURES[name]
    figure = draw({result: json.loads((RESULTS / result).read_text()) for result in results})
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in axes.texts]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) >= 6
    for index, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        assert figure.bbox.x0 <= box.x0, text.get_text()
        assert box.x1 <= figure.bbox.x1, text.get_text()
        assert not any(box.overlaps(other) for other in boxes[index + 1 :]), text.get_text()


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_every_ratio_of_the_readmes_stands_in_a_table_of_the_benchmarks(readme: str) -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    prose = re.sub(r"^```.*?^```$", "", (ROOT / readme).read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\d+\.\d+ \[[\d., ]+\]", prose)
    assert len(found) >= 7
    assert [ratio for ratio in found if ratio not in page] == []


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_report_that_is_shown_is_a_part_of_the_one_that_is_kept(readme: str) -> None:
    text = (ROOT / readme).read_text()
    (path,) = re.findall(r"\((benchmarks/results/accelerate/\S+\.md)\)", text)
    kept = [_cells(line) for line in (ROOT / path).read_text().splitlines() if line.startswith("|")]
    shown = [
        _cells(line)
        for block in re.findall(r"^```text\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if line.startswith("|")
    ]
    assert len(shown) >= 4
    for row in shown:
        assert any(_is_part_of(row, whole) for whole in kept), row


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _is_part_of(row: list[str], whole: list[str]) -> bool:
    """Whether `row` is `whole` with some cells left out, in their order."""
    cells = iter(whole)
    return all(cell in cells for cell in row)
