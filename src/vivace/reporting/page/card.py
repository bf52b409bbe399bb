"""A model card of a run or a bundle as Markdown with the metadata that Hugging Face's hub reads.

The fields of the metadata: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import re
from typing import Any

from vivace.plain import dump_yaml
from vivace.reporting.page.consistency import MAX_SHOWN
from vivace.reporting.page.facts import Page, Score
from vivace.reporting.page.robustness import Attacked, Corrupted
from vivace.reporting.page.words import translator

__all__ = ["card_of"]

NUM_CLASSES = 200
# how the hub calls what is measured
METRICS = {"top1": "accuracy", "map": "mean_average_precision", "exact_match": "exact_match"}
# what Markdown, or the HTML in it, would take for more than text
SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#|~&$])")


def card_of(page: Page) -> str:
    """The contents of README.md. Names are escaped, as they may hold anything."""
    front = dump_yaml(_metadata(page))
    return f"---\n{front}---\n\n" + "\n".join(_body(page)).rstrip() + "\n"


def _metadata(page: Page) -> dict[str, Any]:
    values: dict[str, Any] = {
        "pipeline_tag": "image-classification",
        "library_name": "vivace",
        "tags": ["image-classification", "vivace", *(["multi-label"] if page.multi_label else [])],
        "metrics": sorted({METRICS[score.kind] for score in page.scores}),
    }
    if page.scores and page.data is not None:
        values["model-index"] = [{"name": page.name, "results": [_result(page, score) for score in page.scores]}]
    return values


def _result(page: Page, score: Score) -> dict[str, Any]:
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": page.data, "type": page.data, "split": score.split},
        "metrics": [{"type": METRICS[score.kind], "value": round(score.value, 6)}],
    }


def _body(page: Page) -> list[str]:
    model, data = _escaped(page.model), _escaped(page.data or "unknown data")
    trained = "" if page.num_train is None else f" on {page.num_train:,} images of {data}"
    what = "sets of labels" if page.multi_label else "classes"
    lines = [
        f"# {_escaped(page.name)}",
        "",
        f"{model}, which tells {len(page.classes):,} {what} apart at {page.size} px; trained{trained} by vivace.",
        "",
        "## Use",
        "",
        "```python",
        "import vivace",
        "",
        'classifier = vivace.load("the folder of the bundle")',
        'print(classifier("image.jpg").label)',
        "```",
        "",
        "## How accurate it is",
        "",
        "| split | metric | value | 95 % interval | images |",
        "| --- | --- | --- | --- | --- |",
        *(_row(score) for score in page.scores),
        "",
    ]
    if page.kind == "run" and any(score.split == "val" for score in page.scores):
        lines += ["Training used the validation images to choose and to calibrate: new ones may come out worse.", ""]
    if page.search is not None and page.search.best is not None:
        best = page.search.best
        if best.speedup is not None and best.drop is not None and best.bound is not None:
            lines += [
                f"{_escaped(best.name)} is {best.speedup:.2f} times as fast as "
                f"{_escaped(page.search.baseline or '?')}; its accuracy "
                f"drop is {best.drop:+.2f} points, below {best.bound:.2f} with 95 % confidence.",
                "",
            ]
    lines += _hardship(page)
    if page.privacy is not None:
        epsilon, delta = page.privacy
        lines += [f"Training was differentially private: epsilon {epsilon:.3g} at delta {delta:g}.", ""]
    if page.contradictions:
        t = translator("en")
        told = [t(f"contradiction.{one.rule}", **one.values) for one in page.contradictions[:MAX_SHOWN]]
        lines += [f"## {t('contradiction.title').rstrip(':')}", "", *(f"- {_escaped(line)}" for line in told), ""]
        lines += [t("contradiction.note").replace("this page", "this card"), ""]
    if page.warnings:
        lines += ["## Warnings", "", *(f"- {_escaped(line)}" for line in page.warnings), ""]
    lines += ["## Limits", ""]
    lines.append("It answers every image with one of its classes, also images that show none of them.")
    lines.append("What was measured holds for images like those that it was measured on.")
    if page.started_from:
        licence = f", license {_escaped(page.license)}" if page.license else ""
        lines += ["", f"Training started from published weights: {_escaped(page.started_from)}{licence}."]
    shown = [_escaped(name) for name in page.classes[:NUM_CLASSES]]
    more = "" if len(page.classes) <= NUM_CLASSES else f" and {len(page.classes) - NUM_CLASSES:,} more"
    lines += ["", "## Classes", "", ", ".join(shown) + more, "", "## Files", ""]
    lines += [
        "| file | SHA-256 |",
        "| --- | --- |",
        *(f"| {_escaped(name)} | {_escaped(value)} |" for name, value in page.hashes),
    ]
    return lines


def _hardship(page: Page) -> list[str]:
    """What corruptions and attacks left, each measurement on a line."""
    if not page.corrupted and not page.attacked:
        return []
    rows = [
        (
            f"common corruptions ({found.constants})",
            found.data,
            _split(found),
            found.num_images,
            found.clean,
            found.mean,
            "",
        )
        for found in page.corrupted
    ]
    for found in page.attacked:
        suite = "AutoAttack's standard suite" if found.is_standard else f"{', '.join(found.methods) or '?'}: at most"
        rows.append(
            (found.threat, found.data, _split(found), found.num_images, found.clean, found.robust, f" ({suite})")
        )
    return [
        "## Under corruptions and attacks",
        "",
        "| what | data | images | accuracy as they are | accuracy left | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {_escaped(what)}{_escaped(how)} | {_escaped(data)}, {_escaped(split)} | {count:,} | "
            f"{100 * clean.value:.2f} % | {100 * left.value:.2f} % | {_between(left.low, left.high)} |"
            for what, data, split, count, clean, left, how in rows
        ),
        "",
    ]


def _split(found: Corrupted | Attacked) -> str:
    return f"{found.split} (some were trained on)" if found.is_trained_on else found.split


def _between(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f} %"


def _row(score: Score) -> str:
    between = _between(score.low, score.high)
    count = "–" if score.num_images is None else f"{score.num_images:,}"
    return f"| {_escaped(score.split)} | {METRICS[score.kind]} | {100 * score.value:.2f} % | {between} | {count} |"


def _escaped(text: str) -> str:
    return SPECIAL.sub(r"\\\1", text)
