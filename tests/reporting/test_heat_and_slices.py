"""The report shows heat maps beside the worst mistakes, or why there are none, and the worst parts of the images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from reports import HOSTILE, make_measured, make_sources
from vivace.metrics.measured import Heat, Measured, mistaken_classes
from vivace.metrics.slices import Looks, find_slices
from vivace.reporting.page.about import page_of
from vivace.reporting.page.answers import answers_of
from vivace.reporting.page.render import render, sections_of

CLASSES = ("daisy", "rose", "tulip")


def html_of(measured: Measured, lang: str = "en", classes: tuple[str, ...] = CLASSES, **options: Any) -> str:
    answers = answers_of(measured, classes, temperature=None, **options)
    html = render(page_of(make_sources(classes, answers=answers)), lang=lang)
    return " ".join(html.replace("\u00a0", " ").split())


def make_heat(measured: Measured) -> Heat:
    shown = {row: np.full((32, 32, 3), 10 * row % 256, np.uint8) for row in mistaken_classes(measured, (), 24)}
    return Heat(pictures=shown, method="Grad-CAM", layer="blocks.5.<b>", side=7)


@pytest.mark.parametrize(
    ("lang", "texts"),
    [
        ("en", ("found by Grad-CAM in blocks.5.&lt;b&gt;: 7 × 7 places", "what speaks for rose")),
        ("zh", ("（Grad-CAM，blocks.5.&lt;b&gt;，共 7 × 7 个位置", "支持 rose 的位置")),
    ],
)
def test_mistakes_stand_beside_their_heat_maps(lang: str, texts: tuple[str, ...]) -> None:
    measured = make_measured(3, 60)
    heat = make_heat(measured)
    html = html_of(measured, lang, heat=heat)
    for text in texts:
        assert text in html
    assert html.count('class="two"') == len(heat.pictures) > 5
    without = html_of(measured, lang)
    assert 'class="two"' not in without
    assert texts[0] not in without


def test_a_report_without_heat_maps_says_why() -> None:
    html = html_of(make_measured(3, 60), heat=Heat(missing="no layer <keeps> places"))
    assert "There are no heat maps: no layer &lt;keeps&gt; places" in html


def test_where_time_was_short_the_worst_have_maps_and_the_others_are_shown_alone() -> None:
    measured = make_measured(3, 60)
    heat = make_heat(measured)
    some = dict(list(heat.pictures.items())[:3])
    assert html_of(measured, heat=dataclasses.replace(heat, pictures=some)).count('class="two"') == 3


def test_of_sets_of_labels_the_map_is_of_the_wrong_label() -> None:
    measured = make_measured(3, 30)
    hits = np.eye(3, dtype=bool)[measured.labels_N]
    sets = dataclasses.replace(measured, hits_NK=hits)
    asked = mistaken_classes(sets, (0.5, 0.5, 0.5), 24)
    assert asked
    for row, label in asked.items():
        assert (measured.probs_NK[row, label] >= 0.5) != hits[row, label]
    heat = Heat(pictures={row: np.zeros((8, 8, 3), np.uint8) for row in asked}, method="Grad-CAM", layer="x", side=2)
    assert html_of(sets, heat=heat, thresholds=(0.5, 0.5, 0.5)).count('class="two"') == len(asked)


def dark_is_wrong(measured: Measured, classes: tuple[str, ...] = CLASSES) -> Any:
    """Slices of answers that are wrong wherever it is dark."""
    wrong = measured.probs_NK.argmax(1) != measured.labels_N
    brightness = np.where(wrong, 10.0, 100.0) + np.arange(len(wrong)) / 100
    looks = Looks(brightness_N=brightness, sizes_N2=np.stack([np.arange(len(wrong)) + 50] * 2, 1))
    return find_slices(measured.probs_NK, ~wrong, classes, looks, labels_N=measured.labels_N)


@pytest.mark.parametrize(
    ("lang", "texts"),
    [
        (
            "en",
            (
                "Worst slices",
                "brightness 10.0 to",
                "mistakes are surely more frequent in",
                "nearly square",
                "class daisy",
            ),
        ),
        ("zh", ("表现最差的子集", "亮度 10.0 至", "错误确实更多（加粗）", "接近方形", "类别 daisy")),
    ],
)
def test_the_worst_parts_are_told_with_intervals_and_images(lang: str, texts: tuple[str, ...]) -> None:
    measured = make_measured(3, 120)
    slices = dark_is_wrong(measured)
    assert slices.rows[0].is_worse
    html = html_of(measured, lang, slices=slices)
    for text in texts[:3]:
        assert text in html
    answers = answers_of(measured, CLASSES, temperature=None, slices=slices)
    assert answers.slices is not None
    assert len(answers.slices.rows[0].pictures) == 6
    assert "slices" in sections_of(page_of(make_sources(CLASSES, answers=answers)))
    # every part has a name in both languages
    shown = {row.kind for row in slices.rows[:12]}
    assert {"brightness", "class", "size"} <= shown


def test_where_no_part_is_surely_worse_the_report_says_that_chance_may_put_them_there() -> None:
    measured = make_measured(3, 120)
    right = measured.probs_NK.argmax(1) == measured.labels_N
    slices = find_slices(measured.probs_NK, right, CLASSES, Looks(), labels_N=measured.labels_N)
    if slices.num_worse:
        slices = dataclasses.replace(
            slices, num_worse=0, rows=tuple(dataclasses.replace(row, is_worse=False) for row in slices.rows)
        )
    assert "more frequent in none of them: those at the top may be there by chance" in html_of(measured, slices=slices)


def test_names_of_strangers_are_text_in_parts_too() -> None:
    measured = make_measured(len(HOSTILE), 400)
    html = html_of(measured, classes=HOSTILE, slices=dark_is_wrong(measured, HOSTILE))
    assert "<script>document" not in html
    assert "&lt;script&gt;document" in html
