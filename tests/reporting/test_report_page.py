"""A report is one HTML file that asks for nothing, whatever a run, a bundle or their names hold."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import string
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reports import HOSTILE, make_measured, make_receipt, make_sources
from vivace.errors import ConfigError, MissingExtra
from vivace.metrics.measured import Measured
from vivace.plain import parse_yaml
from vivace.reporting.page import render as rendering
from vivace.reporting.page.about import Sources, page_of
from vivace.reporting.page.answers import answers_of
from vivace.reporting.page.card import card_of
from vivace.reporting.page.charts import curves, scatter
from vivace.reporting.page.render import MAX_BYTES, render, sections_of
from vivace.reporting.page.scores import measured_scores
from vivace.reporting.page.words import LANGUAGES, words_of

CLASSES = ("daisy", "rose", "tulip")
VOID = {"meta", "img", "br"}


class Read(HTMLParser):
    """A page as a browser reads it: its elements, text, anchors, and what it would ask others for."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def read(sources: Sources, lang: str = "en") -> Read:
    """The page, which breaks no rule that all pages keep."""
    html = render(page_of(sources), lang=lang)
    assert len(html.encode("utf-8", "backslashreplace")) <= MAX_BYTES
    page = Read(html)
    assert "script" not in page.tags
    assert not {"iframe", "object", "embed", "form", "base", "link", "audio", "video"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for value in page.values("href"):
        assert value.startswith("#")
        assert value[1:] in ids
    assert all(value.startswith("data:image/webp;base64,") for value in page.values("src"))
    assert "url(" not in html.replace("data:", "")
    assert "default-src 'none'" in html
    return page


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_run_has_every_section_and_every_link_leads_somewhere(lang: str) -> None:
    sources = make_sources(CLASSES, make_measured(3, 60))
    page = read(sources, lang)
    sections = sections_of(page_of(sources))
    assert sections == (
        *("summary", "curves", "mistakes", "confusion", "classes", "reliability", "audit", "made", "missing"),
    )
    assert set(sections) <= set(page.values("id"))
    for name in sections:
        assert words_of(lang)[name] in page.text
    # a cell of a mistake opens its images
    assert "#pair-0-1" in page.values("href")
    assert page.text.count("80.0\u00a0%") >= 2


def test_the_summary_says_what_was_measured() -> None:
    text = " ".join(read(make_sources(CLASSES, make_measured(3, 60))).text.split())
    assert "fast_cnn was trained on photos: 1,200 images of 3 classes." in text
    assert "On 360 images that it was not trained on (test) 80.0 % of its answers are right" in text
    assert "the 95 % interval is 75.6 % to 83.8 %" in text
    assert "The time budget of 60 s was kept: 59.1 s were used." in text
    assert "The target of 70.0 % was reached after 30.5 s." in text
    assert "left out 2 of 1,300 images" in text
    manifest = {**make_sources(CLASSES).manifest, "starting_weights": {"from": "a package"}}
    text = " ".join(read(make_sources(CLASSES, manifest=manifest)).text.split())
    assert "3 classes. It started from published weights (a package). Training took 44 s, and 59.1 s from" in text
    late = make_sources(CLASSES, result={"within_seconds": 60.0, "total_seconds": 75.0})
    assert "The time budget of 60 s was missed: it took 75 s." in " ".join(read(late).text.split())


def test_what_was_not_measured_is_left_out_and_named_with_its_command() -> None:
    sources = make_sources(CLASSES, findings=None, curves=())
    page = read(sources)
    assert not {"mistakes", "confusion", "classes", "reliability", "audit", "curves", "search"} & set(page.values("id"))
    for command in ("vivace report runs/photos-fast DATA", "vivace audit DATA", "vivace profile"):
        assert command in page.text
    assert "img" not in page.tags


def test_names_of_strangers_are_text_and_nothing_else() -> None:
    sources = make_sources(HOSTILE, make_measured(len(HOSTILE), 120), name=HOSTILE[0], place=f"runs/{HOSTILE[1]}")
    run = {"data": {"name": HOSTILE[3]}, "warnings": list(HOSTILE)}
    environment = {"cpu": HOSTILE[0], "versions": {HOSTILE[3]: HOSTILE[0]}}
    manifest = {**sources.manifest, "environment": environment, "recipe": {HOSTILE[0]: HOSTILE[3]}}
    findings = [("warning", HOSTILE[0], 1)]
    page = read(dataclasses.replace(sources, run=run, manifest=manifest, findings=findings))
    for name in (*HOSTILE[:4], *HOSTILE[5:8], *HOSTILE[10:]):
        assert name in page.text
    # what turns the direction of text, ends a line or is no letter at all is shown as an escape
    for shown in ("\\u202eevil", "caf\\udce9", "a\\nb\\x00\\x1b[31m"):
        assert shown in page.text
    assert "\u202e" not in page.text
    assert "49" not in [word.strip() for word in page.words]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_name_from_right_to_left_does_not_turn_the_sentence(lang: str) -> None:
    data = {"name": HOSTILE[5], "num_train": 10}
    page = read(make_sources(CLASSES, run={"data": data}), lang)
    assert f"\u2068{HOSTILE[5]}\u2069" in page.text


@pytest.mark.parametrize(("num_classes", "num_images"), [(2, 20), (26, 500), (110, 700), (1000, 3000)])
def test_few_and_many_classes_fit(num_classes: int, num_images: int) -> None:
    names = [f"class {number}, a name that is not so short" for number in range(num_classes)]
    page = read(make_sources(names, make_measured(num_classes, num_images)))
    assert page.tags.count("img") > 10
    # a mistake of the pair that is confused most can be looked at
    assert any(value.startswith("#pair-") for value in page.values("href"))
    # the rows of all classes, without opening anything or in a list that is opened
    assert all(name in page.text for name in names)


def test_a_page_that_would_be_too_large_loses_pictures_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1,000 names of 120 characters that take six bytes each as text of HTML
    names = [f"{number:04d}" + "&" * 200 for number in range(1000)]
    sources = make_sources(names, make_measured(1000, 3000))
    whole = len(render(page_of(sources)).encode())
    monkeypatch.setattr(rendering, "MAX_BYTES", whole // 2)
    assert len(render(page_of(sources)).encode()) <= whole // 2


def test_large_images_become_small_ones_and_small_ones_stay_as_they_are() -> None:
    for side, channels, crisp in ((300, 3, False), (8, 1, True)):
        answers = answers_of(make_measured(3, 30, side=side, channels=channels), CLASSES, temperature=None)
        for one in answers.mistakes:
            assert (one.width, one.height, one.crisp) == (min(side, 128), min(side, 128), crisp)
            assert len(one.uri) < 20_000
    # to the last bit, as a digit of 8 × 8 pixels would be nothing but blur
    measured = make_measured(3, 30, side=8, channels=1)
    first = answers_of(measured, CLASSES, temperature=None).mistakes[0]
    row = list(measured.names).index(first.name)
    with Image.open(io.BytesIO(base64.b64decode(first.uri.partition(",")[2]))) as image:
        np.testing.assert_array_equal(np.asarray(image)[..., 0], measured.images(np.array([row]))[0, ..., 0])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_images_of_any_type_and_number_of_channels_are_shown(channels: int, dtype: str) -> None:
    measured = make_measured(3, 30, channels=channels)
    measured = dataclasses.replace(measured, images=lambda rows, of=measured.images: of(rows).astype(dtype) * 3)
    answers = answers_of(measured, CLASSES, temperature=None)
    assert len(answers.mistakes) == answers.num_mistakes > 0
    assert all(one.width == 32 for one in answers.mistakes)


CRAFTED: list[Any] = [None, True, -5, 10**400, 1e308, float("nan"), float("inf"), "12", "<b>", [], {}, [[]], {"a": {}}]


@pytest.mark.parametrize("value", CRAFTED, ids=lambda value: str(value)[:12])
def test_crafted_values_are_left_out_and_break_nothing(value: Any) -> None:
    receipt = make_receipt()
    row = dict.fromkeys(receipt["rows"][0], value)
    everywhere = {
        "run": {"data": value, "contract": {"within_seconds": value, "target": value}, "warnings": value},
        "result": dict.fromkeys(("total_seconds", "train_seconds", "epochs", "target_reached", "warnings"), value),
        "tuned": {"execution": value, "trials": [value, {"name": "x", "ratio": value}]},
        "curves": [{"epoch": str(value), "train_loss": str(value), "val_loss": "1", "lr": None}],
        "receipt": {
            **receipt,
            "asked": value,
            "images": value,
            "rows": [value, {**row, "name": "x"}, *receipt["rows"]],
        },
    }
    for name, changed in everywhere.items():
        read(make_sources(CLASSES, **{name: changed}))
    read(make_sources(CLASSES, receipt=dict.fromkeys(receipt, value)))
    manifest = make_sources(CLASSES).manifest
    for name in ("metrics", "recipe", "environment", "data", "starting_weights"):
        free = {"test": {"top1": 0.5, "top1_low": value, "num_images": value}} if name == "metrics" else value
        free = {"x": value} if name == "recipe" and not isinstance(value, float | int) else free
        read(make_sources(CLASSES, manifest={**manifest, name: free if name != "recipe" else {"x": "y"}}))


def test_huge_lists_are_cut() -> None:
    receipt = make_receipt()
    receipt["rows"] = [{**receipt["rows"][2], "name": f"variant {number}"} for number in range(5000)]
    receipt |= {"warnings": ["w" * 5000] * 5000, "notes": ["n" * 5000] * 5000}
    findings = [("warning", "m" * 9000, 1)] * 5000
    curves = [{"epoch": str(number), "val_loss": "1", "val_top1": "0.5", "lr": "1"} for number in range(100_000)]
    sources = make_sources(CLASSES, receipt=receipt, findings=findings, curves=curves)
    assert len(render(page_of(sources)).encode()) < 300_000
    assert "4,940 more are not shown" in read(sources).text


def test_one_validation_is_a_point_and_a_gap_is_no_line() -> None:
    one = make_sources(CLASSES, curves=[{"epoch": "1", "val_loss": "0.3", "val_top1": "0.9", "train_loss": "nan"}])
    page = read(one)
    assert page.tags.count("circle") == 3
    assert "polyline" not in page.tags
    rows = [{"epoch": str(n), "val_loss": "nan" if n == 3 else str(n), "train_loss": "1e999"} for n in range(1, 6)]
    parts = read(make_sources(CLASSES, curves=rows)).values("points")
    assert [len(part.split()) for part in parts] == [2, 2]


def test_a_run_under_attack_shows_how_robust_it_was_meanwhile() -> None:
    rows = [{"epoch": str(epoch), "val_top1": "0.5", "val_robust": f"0.{epoch}"} for epoch in (1, 2, 3)]
    html = render(page_of(make_sources(CLASSES, curves=rows)))
    assert 'class="curve attacked"' in html
    assert words_of("en")["attacked"] in html
    assert words_of("en")["attacked"] not in render(page_of(make_sources(CLASSES)))


def test_a_validation_before_the_first_step_alone_has_an_axis() -> None:
    (chart,) = curves([{"epoch": "0", "val_top1": "0.5"}], None)
    assert chart.x_ticks[-1][1] == "1"


def test_a_search_shows_the_winner_and_that_its_budget_was_kept() -> None:
    sources = make_sources(CLASSES, make_measured(3, 60), receipt=make_receipt(), is_run=False, run={}, result={})
    page = read(sources)
    text = " ".join(page.text.split())
    assert "openvino int8 is 5.00 times as fast as inductor fp32" in text
    assert "On 360 images its accuracy gained 0.36 points; a drop is below 0.61 points with 95 % confidence." in text
    assert "The accuracy budget, a drop of at most 1.5 points, was kept." in text
    assert "vivace accelerate BUNDLE photos --max-drop 1.5 --batch-size 1 --train auto" in text
    assert page_of(sources).kind == "accelerated"
    nothing = make_receipt() | {"winner": None, "reason": "too noisy to decide"}
    assert "No faster variant was accepted: too noisy to decide." in " ".join(
        read(dataclasses.replace(sources, receipt=nothing)).text.split()
    )


def test_images_that_were_given_come_first_and_those_trained_on_are_counted() -> None:
    measured = make_measured(3, 60, right=0.5)
    scores = measured_scores(measured, CLASSES, ())
    sources = make_sources(CLASSES, measured, scores=scores, measured_on="other", num_trained_on=7)
    text = " ".join(read(sources).text.split())
    assert "On 60 images of other (test)" in text
    assert "It was trained on 7 of them, so this says little about new images." in text


def test_sets_of_labels_have_a_table_of_labels_in_place_of_a_matrix() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random((50, 3)) < 0.4
    probs = np.clip(hits * 0.6 + rng.random((50, 3)) * 0.5, 0, 1)
    measured = Measured(
        split="test",
        probs_NK=probs,
        labels_N=np.zeros(50, dtype=np.int64),
        names=[str(row) for row in range(50)],
        images=lambda rows: np.zeros((len(rows), 16, 16, 3), dtype=np.uint8),
        hits_NK=hits,
    )
    answers = answers_of(measured, CLASSES, temperature=None, thresholds=(0.5, 0.4, 0.3))
    sources = make_sources(CLASSES, answers=answers)
    metrics = {"test": {"map": 0.9, "exact_match": 0.7, "exact_match_low": 0.6, "exact_match_high": 0.8}}
    sources = dataclasses.replace(
        sources, manifest={**sources.manifest, "task": "multi_label", "metrics": metrics}, answers=answers
    )
    page = read(sources)
    assert "confusion" not in page.values("id")
    assert "average precision" in page.text
    assert re.search("no (daisy|rose|tulip)", page.text)
    assert page.tags.count("img") == len(answers.mistakes) > 0


def test_both_languages_say_the_same_things() -> None:
    fields = {
        lang: {
            key: sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)
            for key, text in words_of(lang).items()
        }
        for lang in LANGUAGES
    }
    assert fields["en"] == fields["zh"]
    chinese = [text for text in words_of("zh").values() if re.search("[\u4e00-\u9fff]", text)]
    assert len(chinese) > 0.9 * len(words_of("zh"))


def test_an_unknown_language_and_a_missing_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(make_sources(CLASSES))
    with pytest.raises(ConfigError, match=r"lang is unknown: got 'fr'.* Give en or zh"):
        render(page, lang="fr")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    rendering.environment.cache_clear()
    with pytest.raises(MissingExtra, match=r"vivace\[report\]"):
        render(page)
    rendering.environment.cache_clear()


def test_a_card_has_the_metadata_of_the_hub_and_escapes_what_it_names() -> None:
    classes = ("[x](http://evil)", "<script>alert(1)</script>", "a|b", "# head\n---")
    sources = make_sources(classes, receipt=make_receipt())
    run = {**sources.run, "data": {**sources.run["data"], "fingerprint": "<img src=//evil/a.png> ![x](http://evil/b)"}}
    card = card_of(page_of(dataclasses.replace(sources, run=run)))
    assert "\\<img src=//evil/a.png\\> !\\[x\\]\\(http://evil/b\\)" in card
    card = card_of(page_of(sources))
    _, front, body = card.split("---\n", 2)
    values = parse_yaml(front, "README.md")
    assert values["pipeline_tag"] == "image-classification"
    assert values["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.8}]
    assert values["model-index"][0]["results"][0]["dataset"] == {"name": "photos", "type": "photos", "split": "test"}
    assert "\\[x\\]\\(http://evil\\)" in body
    assert "<script>" not in body
    assert "a\\|b" in body
    assert "\n---" not in body
    assert "cd" * 32 in body
    json.dumps(values)


def test_numbers_of_variants_that_are_as_fast_do_not_cover_each_other() -> None:
    found = [(f"variant {number}", 0.2 + number / 1000, 0.0, 0.5, "certified") for number in range(6)]
    figure = scatter([*found, ("slow", 2.0, 0.0, 0.5, "other")], 1.0)
    assert figure is not None
    labels = [(point.x, point.label) for point in figure.points]
    for index, (x, y) in enumerate(labels):
        assert all(abs(x - other) >= 14 or abs(y - height) >= 11 for other, height in labels[:index])
    assert all(0 <= y <= figure.height for _, y in labels)
    # labelled by at least two round numbers, however close the times are
    assert len(scatter(found, None).x_ticks) >= 2  # type: ignore[union-attr]


def test_an_accuracy_is_not_told_twice() -> None:
    measured = make_measured(3, 360)
    sources = make_sources(CLASSES, measured, scores=measured_scores(measured, CLASSES, ()), measured_on="photos")
    text = " ".join(read(sources).text.split())
    assert text.count("(test)") == 2  # of the summary and of the mistakes
    assert "that it was not trained on (validation)" in text
