"""Records that can't be true are told of in a report, a card and a comparison, whichever file was changed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from test_robustness_section import make_kept, scored

from reports import HOSTILE, make_measured, make_receipt, make_sources, make_versus
from vivace.reporting.page.about import page_of
from vivace.reporting.page.card import card_of
from vivace.reporting.page.consistency import contradiction_lines
from vivace.reporting.page.render import render, render_versus

CLASSES = ("cat", "dog")
NO_BREAK = "\u00a0"


def changed(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a path such as "metrics.test.top1"."""
    made: dict[str, Any] = copy.deepcopy(dict(values))
    place: Any = made
    *folders, last = path.split(".")
    for folder in folders:
        place = place[int(folder)] if isinstance(place, list) else place.setdefault(folder, {})
    place[last] = value
    return made


def test_a_run_whose_records_hold_together_says_nothing() -> None:
    page = page_of(make_sources(CLASSES, robustness=make_kept(), receipt=make_receipt()))
    assert page.contradictions == ()
    assert "contradict" not in render(page) + card_of(page)
    assert contradiction_lines(page.contradictions) == []


@pytest.mark.parametrize(
    ("file", "path", "value", "rule", "said"),
    [
        ("manifest", "metrics.test.top1", 1.2, "range", "bundle.json: metrics.test.top1 is 1.2, outside of 0 to 1"),
        ("manifest", "metrics.test.ece", 1.5, "range", "bundle.json: metrics.test.ece is 1.5"),
        ("manifest", "metrics.test.top1", 0.95, "interval", "is 0.95, outside of its own interval, 0.7556 to 0.8381"),
        ("manifest", "metrics.test.num_images", 100_000, "width", "0.8 of 100,000 images, which gives a 95 % interval"),
        ("manifest", "metrics.val.top1", 0.8123, "parts", "no whole number of 360 images gives that"),
        ("manifest", "metrics.test.top5", 0.5, "more", "metrics.test.top1 is 0.8, more than"),
        ("manifest", "metrics.test.nll", -0.2, "negative", "metrics.test.nll is -0.2, which can't be negative"),
        ("manifest", "metrics.robust.coverage", -0.1, "range", "metrics.robust.coverage is -0.1, outside of 0 to 1"),
        (
            "manifest",
            "data.num_test",
            100,
            "more",
            "num_images is 360, more than bundle.json: data.num_test",
        ),
        ("manifest", "data.num_images", 1000, "more", "num_train + num_val + num_test is 1,200, more than"),
        ("manifest", "metrics.privacy.epsilon", -1, "negative", "metrics.privacy.epsilon is -1"),
        ("run", "data.num_train", 45_000, "differs", "run.json: data.num_train is 45,000, and bundle.json"),
        (
            "result",
            "val_top1",
            0.99,
            "differs",
            "val_top1 is 0.99, and bundle.json: metrics.val.top1 is 0.825",
        ),
        ("result", "metrics", {"test": {"top1": 0.9}}, "differs", "result.json: metrics.test.top1 is 0.9"),
        ("result", "train_seconds", 400.0, "more", "train_seconds is 400, more than result.json: total_seconds"),
        ("result", "total_seconds", -5.0, "negative", "result.json: total_seconds is -5"),
        ("result", "target_seconds", 90.0, "more", "target_seconds is 90, more than"),
        ("result", "saved_epoch", 60, "more", "saved_epoch is 60, more than result.json: epochs, which is 6"),
        (
            "robustness",
            "attack.robust",
            scored(0.95),
            "more",
            "is 0.95, more than robustness.json: attack.clean",
        ),
        (
            "robustness",
            "attack.robust",
            scored(0.2),
            "differs",
            "is 0.2, and robustness.json: attack.square",
        ),
        ("robustness", "attack.num_images", 50_000, "width", "attack.clean is 0.9 of 50,000 images"),
        ("robustness", "attack.attacks.1.robust_so_far", 0.6, "more", "attack.apgd-t is 0.6, more than"),
        ("robustness", "attack.attacks.2.is_complete", False, "suite", "did not run to their end: fab-t"),
        ("robustness", "attack.attacks.0.num_attacked", 600, "more", "num_attacked is 600, more than"),
        ("robustness", "attack.attacks.3.num_attacked", 0, "differs", "attack.square.num_attacked is 0, and"),
        ("robustness", "attack.eps", 0.5, "differs", "attack.eps is 0.5, and robustness.json: attack.threat is"),
        ("robustness", "corruptions.mean", scored(0.8, 1000), "differs", "corruptions.mean is 0.8, and"),
        ("robustness", "corruptions.cells.fog", [1.9, 0.8, 0.7, 0.6, 0.5], "range", "corruptions.cells is 1.9"),
        ("receipt", "rows.2.certified.drop", 2.5, "more", "openvino int8.drop is 2.5, more than"),
        ("receipt", "rows.2.ratio.ratio", 50.0, "interval", "openvino int8.ratio is 50, outside of its own interval"),
        ("receipt", "rows.2.timed.p50_ms", -0.5, "negative", "p50_ms is -0.5"),
    ],
)
def test_what_can_not_be_true_is_told_of(file: str, path: str, value: Any, rule: str, said: str) -> None:
    sources = make_sources(CLASSES)
    records = {
        "manifest": sources.manifest,
        "run": sources.run,
        "result": sources.result,
        "robustness": make_kept(),
        "receipt": {} if file != "receipt" else make_receipt(),
    }
    records[file] = changed(records[file], path, value)
    page = page_of(make_sources(CLASSES, **records))
    assert rule in {one.rule for one in page.contradictions}
    html, card = render(page).replace(NO_BREAK, " "), card_of(page).replace("\\", "").replace(NO_BREAK, " ")
    for text in (html, card):
        assert "These records contradict each other" in text
        assert said in text.replace("&#39;", "'")
    assert "这些记录互相矛盾" in render(page, lang="zh")
    assert contradiction_lines(page.contradictions)[0].startswith("these records contradict each other: ")


def test_more_right_answers_than_the_bundle_gives_are_told_of() -> None:
    measured = make_measured(2, 400, right=0.8)
    right = float((measured.probs_NK.argmax(1) == measured.labels_N).mean())
    sources = make_sources(CLASSES, measured)
    for claimed, found in ((right, set()), (0.99, {"answers"})):
        manifest = changed(sources.manifest, "metrics.test", {"num_images": 400, "top1": claimed})
        page = page_of(make_sources(CLASSES, measured, manifest=manifest))
        assert {one.rule for one in page.contradictions} == found
    # images that were given may be others
    page = page_of(make_sources(CLASSES, measured, manifest=manifest, measured_on="other photos"))
    assert page.contradictions == ()
    # without a split for it, training validates on images that it held out
    held_out = dataclasses.replace(measured, split="held out")
    for claimed, found in ((right, set()), (0.99, {"answers"})):
        manifest = changed(sources.manifest, "metrics.val", {"num_images": 400, "top1": claimed})
        page = page_of(make_sources(CLASSES, held_out, manifest=manifest))
        assert {one.rule for one in page.contradictions} == found


def test_a_comparison_says_which_of_the_two_it_is() -> None:
    sources = make_sources(CLASSES)
    bad = page_of(make_sources(CLASSES, manifest=changed(sources.manifest, "metrics.test.top1", 3)))
    versus = make_versus(CLASSES)
    assert "contradict" not in render_versus(versus)
    html = render_versus(dataclasses.replace(versus, second=dataclasses.replace(versus.second, page=bad)))
    assert html.count("These records contradict each other") == 1


def test_of_many_the_first_are_shown_and_the_others_counted() -> None:
    sources = make_sources(CLASSES)
    metrics = {f"split {number}": {"top1": 2 + number} for number in range(30)}
    page = page_of(make_sources(CLASSES, manifest={**sources.manifest, "metrics": metrics}))
    assert len(page.contradictions) == 30
    html = render(page)
    assert html.count("outside of 0 to 1.") == 12
    assert "and 18 more" in html


@pytest.mark.parametrize("junk", [*HOSTILE[:5], None, True, 1e308, 10**400, float("nan"), [], {}, [[[[{}]]]]])
def test_junk_is_no_reason_to_fail_or_to_believe(junk: Any) -> None:
    sources = make_sources(CLASSES)
    for file, paths in {
        "manifest": ("metrics", "metrics.test", "metrics.test.top1", "data", "data.num_train"),
        "run": ("data", "contract"),
        "result": ("val_top1", "metrics", "total_seconds"),
        "robustness": ("attack", "attack.attacks", "attack.attacks.0", "corruptions.cells", "corruptions"),
        "receipt": ("rows", "rows.1", "rows.1.certified", "rows.1.ratio"),
    }.items():
        kept = {"robustness": make_kept(), "receipt": make_receipt()}
        before: Any = kept[file] if file in kept else getattr(sources, file)
        for path in paths:
            target = changed(before, path, junk) if not path.endswith((".0", ".1")) else before
            html = render(page_of(make_sources(CLASSES, **{file: target})))
            assert "<script>document" not in html
