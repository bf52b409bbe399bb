"""Chinese pages are Chinese: what was recorded in English is translated, names and commands stay as they are."""

from __future__ import annotations

import ast
import dataclasses
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vivace
from reports import HOSTILE, make_kept, make_measured, make_receipt, make_sources
from vivace.reporting.page.about import page_of
from vivace.reporting.page.answers import answers_of
from vivace.reporting.page.gallery import GalleryFinding, render_gallery
from vivace.reporting.page.phrases import in_language, phrases_of
from vivace.reporting.page.render import render
from vivace.reporting.page.words import words_of
from vivace.training.outcome import Outcome, outcome_warnings

SOURCE = Path(vivace.__file__).parent
CLASSES = ("雏菊", "玫瑰", "郁金香")
# names, units, and words that are the same in Chinese texts of the field
KEPT = {
    *("vivace", "photos", "fast", "cnn", "bf", "fp", "eager", "openvino", "onnx", "inductor", "int", "torch", "px"),
    *("MB", "kB", "ms", "GPU", "CUDA", "Python", "SHA", "mAP", "AUROC", "PGD", "FGSM", "AutoAttack", "CIFAR", "C"),
    *("arXiv", "linf", "apgd", "ce", "t", "fab", "square", "JPEG", "Holm", "Clopper", "Pearson", "nat", "Grad", "CAM"),
    *("aps", "F", "p", "x", "cat", "a", "b", "jpg", "energy", "layer", "relu", "model", "safetensors", "test", "csv"),
    *("left", "out", "DATA", "audit", "lr", "epochs"),
}


def visible(html: str) -> str:
    """The text of a page without styles, commands and the recipe."""
    html = re.sub("[0-9a-f]{64}", " ", html)
    for tag in ("style", "code", "pre"):
        html = re.sub(rf"<{tag}[ >].*?</{tag}>", " ", html, flags=re.DOTALL)
    attributes = " ".join(re.findall(r'(?:alt|title|aria-label)="([^"]*)"', html))
    return re.sub(r"<[^>]*>", " ", html) + attributes


def english(text: str) -> list[str]:
    """Runs of three or more Latin words, of which one is no name."""
    runs = re.findall(r"[A-Za-z]+(?:[ ,.;:'’-]+[A-Za-z]+){2,}", text)
    return [run for run in runs if not set(re.findall(r"[A-Za-z]+", run)) <= KEPT]


def test_a_report_with_all_chapters_holds_no_english_sentence() -> None:
    measured = make_measured(3, 120)
    sources = make_sources(CLASSES)
    reliance = {
        "stated_coverage": 0.9,
        "coverage": 0.91,
        "coverage_low": 0.88,
        "coverage_high": 0.94,
        "mean_set_size": 1.1,
        "rule": "aps",
        "stated_risk": 0.05,
        "abstained": 0.1,
        "error_answered": 0.03,
        "error_answered_bound": 0.05,
        "sizes": ((1, 0.9), (2, 0.1)),
        "ood_score": "energy",
        "calibrated_on": "1,200 held-out images (eager bf16), which also chose the temperature and the saved epoch; "
        "100 others chose the rule aps",
        "unlike": (("uniform noise", 0.9, 0.8, 0.95),),
    }
    warnings = [
        "left out 3 of 1,300 images of photos: 2 truncated, 1 empty",
        "the run ended after 0.5 epochs: it has seen 600 of 1,200 training images. Give it more time.",
        "the cache of photos is damaged, so its images are read again: a.jpg (b)",
    ]
    findings = [
        ("quarantine", "the image is damaged: a/b.jpg (it ends before its pixels). Restore it from a copy, or leave it "
         "out.", 1),
        ("warning", "the same image is in train and val and test: a.jpg, b.jpg", 2),
        ("quarantine", "the same image is labelled 雏菊 and 玫瑰: a.jpg, b.jpg", 2),
    ]  # fmt: skip
    kept = make_kept(
        warnings=["gradients may be masked, and the true robustness lower: the gradient of 9 images is zero"]
    )
    start = {"kind": "package", "from": "the installed package torch-nets 0.1.0"}
    page = page_of(
        make_sources(
            CLASSES,
            manifest={**sources.manifest, "starting_weights": start},
            result={**sources.result, "warnings": warnings},
            findings=findings,
            receipt=make_receipt(),
            robustness=kept,
            answers=answers_of(measured, CLASSES, temperature=0.6, reliance=reliance),
        )
    )
    text = visible(render(page, lang="zh"))
    assert english(text) == [], english(text)
    for expected in (
        "1,200 张留出的图像（eager bf16），它们还用于选择温度和保存的训练轮",
        "photos 的 1,300 张图像中剔除了 3 张：2 个损坏的文件、1 个空文件",
        "运行在 0.5 轮后结束：只看过 1,200 张训练图像中的 600 张。请给更多时间。",
        "图像已损坏：a/b.jpg（像素不完整就结束了）。请从副本恢复，或剔除它。",
        "同一图像既在训练集又在验证集和测试集中：a.jpg, b.jpg",
        "梯度可能被掩盖，真实的鲁棒性更低：9 张图像的梯度为零",
        "onnx int8 需要 2,000 张图像",
        "高斯噪声",
        "处理器数",
        "已安装的包 torch-nets 0.1.0",
    ):
        assert expected in text, expected
    assert "held-out" in render(page)


def test_a_label_that_an_image_does_not_have_is_called_so() -> None:
    measured = make_measured(3, 60)
    hits = np.eye(3, dtype=bool)[measured.labels_N]
    sets = dataclasses.replace(measured, hits_NK=hits)
    answers = answers_of(sets, CLASSES, temperature=None, thresholds=(0.5,) * 3)
    assert {one.absent for one in answers.mistakes} <= {"label", "predicted"}
    page = page_of(make_sources(CLASSES, answers=answers))
    assert re.search("no (雏菊|玫瑰|郁金香)", render(page))
    text = visible(render(page, lang="zh"))
    assert re.search("没有 (雏菊|玫瑰|郁金香)", text)
    assert not re.search("no (雏菊|玫瑰|郁金香)", text)


def test_an_audit_page_is_chinese_too() -> None:
    findings = [
        GalleryFinding(
            "near_leak", "warning", "nearly the same image is in train and test: a.jpg, b.jpg", ("train:a",)
        ),
        GalleryFinding(
            "truncated", "quarantine", "the file is empty: c.jpg. Restore it from a copy, or leave it out.", ()
        ),
        GalleryFinding("strange_kind", "warning", "something that nobody foresaw", ()),
    ]
    lines = [
        "12 images. vivace train leaves out 1 of 12 images: 1 empty.",
        "12 images were compared for near duplicates: 1 groups.",
    ]
    html = render_gallery("photos", lines, findings, lambda _: None, lang="zh")
    assert '<html lang="zh-Hans">' in html
    text = visible(html)
    for expected in (
        "photos 的数据检查",
        "几乎相同的图像既在训练集又在测试集中：a.jpg, b.jpg",
        "文件为空：c.jpg。",
        "1 组",
    ):
        assert expected in text
    # what nobody has translated is shown as it was said
    assert "something that nobody foresaw" in text
    assert "Audit of photos" in render_gallery("photos", lines, findings, lambda _: None)


def said_in(path: Path) -> Iterator[str]:
    """The sentences that a module gives to `warn`, with {} for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "warn" and node.args:
            text = pattern(node.args[0])
            if text:
                yield text


def pattern(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def test_what_training_warns_of_has_a_translation() -> None:
    modules = [*sorted((SOURCE / "training").rglob("*.py")), SOURCE / "data/caching/cache.py", SOURCE / "data/audit.py"]
    said = [(path, text) for path in modules for text in said_in(path)]
    assert len(said) > 25
    for path, text in said:
        # a sentence that is filled in whole is checked where it is made
        rests = [untranslated("#".join(one.split("{}"))) for one in (text, text.removeprefix("{} "))]
        assert not all(rests), (path.name, text)


def untranslated(text: str) -> bool:
    """Whether words of three or more letters follow each other, outside of brackets and commands."""
    left = re.sub("（.*?）|`.*?`|pip install .*", "", in_language(text, "zh"))
    return re.search("[a-z]{3,} [a-z]{3,} [a-z]{3,}", left) is not None


def test_what_is_said_of_a_runs_outcome_has_a_translation() -> None:
    common = {"num_images_seen": 10, "num_train": 100, "epochs": 0.1, "commonest": "cat"}
    fields = {field.name for field in dataclasses.fields(Outcome)}
    assert common.keys() <= fields
    outcome = Outcome(
        **common,  # type: ignore[arg-type]
        num_right=30,
        num_val=100,
        num_val_commonest=35,
        within_seconds=10,
        total_seconds=20,
        train_seconds=5,
        cpu_seconds=1,
        target=0.9,
        num_rollbacks=2,
        lr_scale=0.25,
        num_overfits=1,
    )
    lines = outcome_warnings(outcome)
    assert len(lines) >= 5
    for line in lines:
        assert english(in_language(line, "zh")) == [], line


def test_every_translation_fills_all_of_its_gaps_and_both_tables_have_the_same_words() -> None:
    assert words_of("zh").keys() == words_of("en").keys()
    for words, other in phrases_of("zh"):
        places = {int(found) for found in re.findall(r"\{(\d)", other)}
        assert places <= set(range(len(words) - 1)), other
        # the kinds of what was left out read the same, so two gaps may be one
        assert re.search("[\u3000-\u9fff]|hub", other), other


@pytest.mark.parametrize("text", [*HOSTILE, "", "{}", "{0}", " and ", ". . .", "a and b", "left out", "no value: {}"])
def test_any_text_is_shown_and_none_is_believed_to_be_ours(text: str) -> None:
    assert in_language(text, "zh") == text
    assert in_language(text, "en") == text


def test_a_strangers_text_takes_no_time() -> None:
    text = "left out " + " of ".join(["images"] * 5000) + ": x"
    started = time.process_time()
    in_language(text, "zh")
    in_language(" (".join(["images"] * 5000), "zh")
    assert time.process_time() - started < 2
