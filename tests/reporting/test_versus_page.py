"""The page of two runs side by side: what it says, in which order, and that it stays small."""

from __future__ import annotations

import numpy as np
import pytest

from reports import HOSTILE, make_measured, make_versus
from vivace.reporting.page.charts import overlaid
from vivace.reporting.page.render import MAX_BYTES, render_versus
from vivace.statistics.multiple import holm
from vivace.statistics.paired import exact_p_value

NAMES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def test_images_are_those_that_one_alone_has_right_with_both_answers() -> None:
    versus = make_versus(NAMES)
    first, second = (make_measured(5, 100, right=right, seed=seed) for right, seed in ((0.6, 0), (0.9, 1)))
    only_second = (first.probs_NK.argmax(1) != first.labels_N) & (second.probs_NK.argmax(1) == second.labels_N)
    assert versus.second.num_only_right == only_second.sum() > 0
    names = [one.picture.name for one in versus.only_second]
    shown = [int(name.rpartition("/")[2].removesuffix(".jpg")) for name in names]
    assert all(only_second[row] for row in shown)
    # the mistakes that A was surest of come first
    wrong = [one.picture.percent for one in versus.only_second]
    assert wrong == sorted(wrong, reverse=True)
    assert all(one.picture.predicted != one.picture.label == one.other for one in versus.only_second)
    assert all(one.picture.predicted == one.picture.label != one.other for one in versus.only_first)


def test_classes_have_a_p_value_for_all_of_them_at_once() -> None:
    versus = make_versus(NAMES)
    alone = [exact_p_value(row.num_only_first, row.num_only_second) for row in versus.classes]
    assert [row.p_value for row in versus.classes] == pytest.approx(holm(np.array(alone)).tolist())
    assert [row.p_value for row in versus.classes] == sorted(row.p_value for row in versus.classes)
    assert sum(row.support for row in versus.classes) == 100


def test_the_verdict_is_said_and_a_name_is_never_markup() -> None:
    html = render_versus(make_versus(HOSTILE), lang="en")
    assert "B is better." in html
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    equal = render_versus(make_versus(NAMES, better=None, num_left_out=1234), lang="zh")
    assert "差异不显著" in equal
    assert "1,234" in equal


def test_pictures_are_left_out_rather_than_a_page_of_over_3_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    versus = make_versus(NAMES)
    full = render_versus(versus)
    monkeypatch.setattr("vivace.reporting.page.render.MAX_BYTES", len(full) - 1)
    less = render_versus(versus)
    assert 0 < less.count("data:image/webp") < full.count("data:image/webp")
    assert len(full) < MAX_BYTES


def test_curves_of_two_runs_share_their_axes() -> None:
    short = [{"epoch": "1", "val_top1": "0.2", "val_loss": "2"}, {"epoch": "2", "val_top1": "0.4", "val_loss": "x"}]
    long = [{"epoch": str(n), "val_top1": str(0.1 * n), "val_loss": "nan"} for n in range(1, 9)]
    charts = overlaid(short, long)
    # the second has no loss
    assert [chart.what for chart in charts] == ["top1"]
    first, second = charts[0].lines
    assert (first.kind, second.kind) == ("first", "second")
    assert len(first.dots) == 2
    assert len(second.dots) == 8
    # the same accuracy has the same height
    assert first.dots[0][1] == second.dots[1][1]
    assert overlaid([], long) == ()
