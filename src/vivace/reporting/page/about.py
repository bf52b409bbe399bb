"""From the files of a run and of a bundle, as plain values, to what a report says: a `Page`.

bundle.json was checked when the bundle was opened; the others may hold anything, and what makes no sense is left out.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vivace.plain import dump_yaml
from vivace.reporting.page.charts import curves
from vivace.reporting.page.consistency import answers_contradict, contradictions_of
from vivace.reporting.page.contradictions import Contradiction
from vivace.reporting.page.facts import Answers, Found, Page, Score
from vivace.reporting.page.reading import clean, items, mapping, number, text, texts, whole
from vivace.reporting.page.robustness import attacked_of, corrupted_of
from vivace.reporting.page.searched import search_of

__all__ = ["Sources", "page_of"]

SPLITS = ("test", "val")
# of a run that has many
MAX_WARNINGS = 50
MAX_FINDINGS = 60
MAX_RECIPE = 20_000
# an option of the run that is left to the machine, as tune.json has it → nothing is shown for these values
PLAIN = (False, None, "off")
# a path that was cut where there was no more room for it
CUT_PATH = re.compile(r"/[^,]*?…")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a page is made from: plain values, as JSON has them; {} where there is none."""

    name: str
    """Of the folder."""
    place: str
    """The path that commands name."""
    manifest: Mapping[str, Any]
    """bundle.json."""
    run: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    tuned: Mapping[str, Any] = field(default_factory=dict)
    receipt: Mapping[str, Any] = field(default_factory=dict)
    robustness: Mapping[str, Any] = field(default_factory=dict)
    curves: Sequence[Mapping[str, str | None]] = ()
    """Rows of metrics.csv."""
    answers: Answers | None = None
    findings: Sequence[tuple[str, str, int]] | None = None
    """(severity, message, number of images) of the audit; None: there was none."""
    is_run: bool = False
    is_named: bool = False
    """Whether the run's data are a data set that vivace knows by name."""
    scores: Sequence[Score] = ()
    """On images that were given."""
    measured_on: str | None = None
    """The name of these images' data; None: they are the run's own."""
    num_trained_on: int | None = 0
    """How many of the images were trained on; None: that is not known."""
    private: Sequence[str] = ()
    """Folders of this machine, which are nobody's business: paths in messages begin below them."""

    def with_answers(
        self,
        answers: Answers | None,
        findings: Sequence[tuple[str, str, int]] | None,
        *,
        scores: Sequence[Score] = (),
        measured_on: str | None = None,
        num_trained_on: int | None = 0,
        folders: Sequence[Path] = (),
    ) -> Sources:
        """The same with what was measured. folders: below which the images lie.

        Of a private run images of a test split alone are shown, whoever gave them: others may have been trained on,
        which its bundle does not tell, and the audit's findings name them.
        """
        if _privacy(self.manifest) is not None:
            answers = answers if answers is not None and answers.split == "test" else None
            findings = None
        return dataclasses.replace(
            self,
            answers=answers,
            findings=findings,
            scores=scores,
            measured_on=measured_on,
            num_trained_on=num_trained_on,
            private=(*self.private, *(str(path) for one in folders for path in (one, one.resolve()))),
        )


def page_of(sources: Sources) -> Page:
    """The page. Raises nothing for values that make no sense: they are left out."""
    manifest, run, result = sources.manifest, sources.run, sources.result
    architecture, contract = mapping(manifest, "architecture"), mapping(run, "contract")
    privacy = _privacy(manifest)
    # a private bundle says less of its data than its run does, and no curve is of training images
    data = (mapping(run, "data") if privacy is None else {}) or mapping(manifest, "data")
    search = search_of(sources.receipt)
    within = number(result, "within_seconds", 0) or number(contract, "within_seconds", 0)
    return Page(
        name=clean(sources.name, 120),
        kind="run" if sources.is_run else "bundle" if search is None else "accelerated",
        model=text(architecture, "name") or "?",
        data=text(data, "name"),
        classes=tuple(clean(str(name), 120) for name in items(manifest, "classes")),
        multi_label=manifest.get("task") == "multi_label",
        size=whole(architecture, "size") or 0,
        num_bytes=sum(whole(facts, "bytes") or 0 for facts in mapping(manifest, "files").values()),
        runtime=text(manifest, "runtime") or "?",
        precision=text(manifest, "precision") or "?",
        num_train=whole(data, "num_train"),
        started_from=text(mapping(manifest, "starting_weights"), "from"),
        license=text(mapping(manifest, "starting_weights"), "license"),
        scores=tuple(score for score in _scores(mapping(manifest, "metrics")) if not _is_again(score, sources, data)),
        measured=tuple(sources.scores),
        measured_on=None if sources.measured_on is None else clean(sources.measured_on, 120),
        num_trained_on=sources.num_trained_on,
        epochs=number(result, "epochs", 0, 1e9),
        train_seconds=number(result, "train_seconds", 0, 1e9),
        # all of a run takes no less than its steps
        total_seconds=number(result, "total_seconds", number(result, "train_seconds", 0, 1e9) or 0, 1e9),
        within_seconds=within,
        target=number(contract, "target", 0, 1),
        target_reached=result.get("target_reached") if isinstance(result.get("target_reached"), bool) else None,
        target_seconds=number(result, "target_seconds", 0, 1e9),
        warnings=_warnings(sources),
        contradictions=_contradictions(sources),
        privacy=privacy,
        curves=() if privacy is not None else curves(sources.curves, number(result, "saved_epoch", 0, 1e9)),
        answers=sources.answers,
        findings=_findings(sources),
        search=search,
        corrupted=corrupted_of(sources.robustness),
        attacked=attacked_of(sources.robustness),
        kernels=_kernels(sources.tuned),
        kernels_measured=bool(items(sources.tuned, "trials")),
        environment=_environment(mapping(manifest, "environment")),
        hashes=_hashes(manifest, data),
        commands=_commands(sources, data, within, number(contract, "target", 0, 1)),
        recipe=_recipe(mapping(manifest, "recipe")),
        not_measured=_not_measured(sources, search is not None),
    )


def _contradictions(sources: Sources) -> tuple[Contradiction, ...]:
    answers = sources.answers
    measured: tuple[Contradiction, ...] = ()
    # images that were given are others than those of the records
    if answers is not None and sources.measured_on is None:
        kind = "exact_match" if answers.multi_label else "top1"
        right = answers.num_images - answers.num_mistakes
        measured = answers_contradict(
            sources.manifest, split=answers.split, kind=kind, num_images=answers.num_images, num_right=right
        )
    found = contradictions_of(
        manifest=sources.manifest,
        run=sources.run,
        result=sources.result,
        receipt=sources.receipt,
        robustness=sources.robustness,
        # of a private run they are of training images, and not shown
        curves=() if _privacy(sources.manifest) is not None else sources.curves,
    )
    return (*measured, *found)


def _scores(metrics: Mapping[str, Any]) -> tuple[Score, ...]:
    """Of test and val first, then of any other split; sets of labels have two."""
    scores = []
    for split in sorted(metrics, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))[:6]:
        values = mapping(metrics, split)
        for kind in ("top1", "map", "exact_match"):
            value = number(values, kind, 0, 1)
            if value is None:
                continue
            low, high = number(values, f"{kind}_low", 0, 1), number(values, f"{kind}_high", 0, 1)
            count = whole(values, "num_images")
            scores.append(Score(split=clean(split), kind=kind, value=value, low=low, high=high, num_images=count))
    return tuple(scores)


def _privacy(manifest: Mapping[str, Any]) -> tuple[float, float] | None:
    """Epsilon and delta of a private bundle."""
    spent = mapping(mapping(manifest, "metrics"), "privacy")
    epsilon, delta = number(spent, "epsilon", 0), number(spent, "delta", 0, 1)
    return None if epsilon is None or delta is None else (epsilon, delta)


def _is_again(score: Score, sources: Sources, data: Mapping[str, Any]) -> bool:
    """Whether the images that were given are those of a score that the bundle has already."""
    return sources.measured_on == data.get("name") and any(
        (score.split, score.kind, score.num_images) == (given.split, given.kind, given.num_images)
        for given in sources.scores
    )


def _warnings(sources: Sources) -> tuple[str, ...]:
    told = [
        line
        for values in (sources.run, sources.result, sources.receipt)
        for line in texts(values, "warnings", most=MAX_WARNINGS, limit=500)
    ]
    return tuple(dict.fromkeys(_without(sources.private, line) for line in told))[:MAX_WARNINGS]


def _findings(sources: Sources) -> tuple[Found, ...] | None:
    if sources.findings is None:
        return None
    return tuple(
        Found(severity=severity, message=clean(_without(sources.private, message), 400), count=count)
        for severity, message, count in sources.findings[:MAX_FINDINGS]
    )


def _without(folders: Sequence[str], text: str) -> str:
    """The text with paths that begin below these folders; of one that was cut before, nothing is left."""
    for folder in folders:
        text = text.replace(f"{folder}/", "")
        for cut in set(CUT_PATH.findall(text)):
            text = text.replace(cut, "…") if folder.startswith(cut[:-1]) else text
    return text


def _kernels(tuned: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What the trial switched on, then how each candidate did."""
    chosen = mapping(tuned, "execution")
    rows = [
        (clean(name, 60), clean(str(value), 60))
        for name, value in list(chosen.items())[:30]
        if isinstance(value, str | int | float) and value not in PLAIN
    ]
    for trial in items(tuned, "trials")[:30]:
        name, ratio = text(trial, "name", 60), number(trial, "ratio", 0, 1e6)
        low, high = number(trial, "ratio_low", 0, 1e6), number(trial, "ratio_high", 0, 1e6)
        if name is None or ratio is None:
            continue
        told = f"{ratio:.2f} ×" + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")
        rows.append((name, told + (" ✓" if trial.get("kept") is True else "")))
    return tuple(rows)


def _environment(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    rows = [(name, text(values, name)) for name in ("cpu", "system", "python", "vivace", "cuda")]
    rows.insert(1, ("processors", str(whole(values, "num_cpus")) if whole(values, "num_cpus") else None))
    gpus = texts(values, "gpus", most=8)
    rows.append(("gpus", ", ".join(gpus) or None))
    versions = mapping(values, "versions")
    rows += [(clean(name, 40), text(versions, name, 40)) for name in list(versions)[:40]]
    return tuple((name, value) for name, value in rows if value)


def _hashes(manifest: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """SHA-256 of the files, and the fingerprint of the data."""
    files = mapping(manifest, "files")
    rows = [(clean(name, 80), text(mapping(files, name), "sha256", 64)) for name in list(files)[:20]]
    return tuple((name, value) for name, value in (*rows, ("data", text(data, "fingerprint", 64))) if value)


def _commands(sources: Sources, data: Mapping[str, Any], within: float | None, target: float | None) -> tuple[str, ...]:
    """What repeats it."""
    name = clean(str(data.get("name") or "DATA"), 200)
    asked = mapping(sources.receipt, "asked")
    if sources.receipt:
        words = ["vivace", "accelerate", "BUNDLE", clean(str(asked.get("data") or name), 200).rpartition("/")[2]]
        for key in ("max_drop", "batch_size", "train"):
            value = asked.get(key)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                words += _option(key, clean(str(value)[:80], 40))
        return (shlex.join(words),)
    recipe = f"{sources.place}/recipe.yaml" if sources.is_run else "recipe.yaml"
    # where the data lie on this machine is nobody's business, and the name alone would be no place
    words = ["vivace", "train", name if sources.is_named else f"PATH/TO/{name}", *_option("config", recipe)]
    words += _option("within", f"{within:g}s") if within else []
    words += _option("target", f"{target:g}") if target else []
    return (shlex.join(words),)


def _option(name: str, value: str) -> list[str]:
    """An option of the command line by its parameter's name."""
    return ["--" + name.replace("_", "-"), value]


def _recipe(recipe: Mapping[str, Any]) -> str | None:
    shown = dump_yaml(recipe) if recipe else ""
    # lines stay lines
    lines = [clean(line, 300) for line in shown[:MAX_RECIPE].splitlines()]
    return "\n".join(lines) or None


def _not_measured(sources: Sources, searched: bool) -> tuple[tuple[str, str], ...]:
    name = shlex.quote(sources.place)
    rows = []
    if sources.answers is None:
        rows.append(("answers", f"vivace report {name} DATA"))
    if sources.findings is None:
        rows.append(("audit", "vivace audit DATA"))
    if _has_one_class(sources) and not corrupted_of(sources.robustness):
        rows.append(("corruptions", f"vivace evaluate {name} DATA --corruptions"))
    if _has_one_class(sources) and not attacked_of(sources.robustness):
        rows.append(("attack", f"vivace evaluate {name} DATA --attack linf:8/255"))
    if not searched:
        rows.append(("search", f"vivace accelerate {name} DATA"))
    if not searched:
        rows.append(("profile", f"vivace profile {name}"))
    return tuple(rows)


def _has_one_class(sources: Sources) -> bool:
    """Whether an image has one class: what is measured by sets of labels is neither corrupted nor attacked."""
    return sources.manifest.get("task") != "multi_label"
