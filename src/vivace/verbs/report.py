"""vivace.report: what a person must know of a run or a bundle before relying on it, as one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.bundle import Bundle, load_bundle
from vivace.data.audit import Audit
from vivace.data.place import AnyData, Data
from vivace.errors import CacheDamaged, DataError, InputError, OutputPathError, first_line
from vivace.evaluation.measuring import MeasuredSplit, measure
from vivace.evaluation.slicing import slices_of
from vivace.evaluation.uncertainty import told_of
from vivace.heatmaps.mistakes import heat_of
from vivace.notices import collected_warnings, warn
from vivace.outputs import warn_of_replaced, write_text
from vivace.predictor import Predictor
from vivace.reporting.page.about import Sources, page_of
from vivace.reporting.page.answers import answers_of
from vivace.reporting.page.card import card_of
from vivace.reporting.page.consistency import contradiction_lines
from vivace.reporting.page.render import render, sections_of
from vivace.reporting.page.scores import measured_scores
from vivace.reporting.page.words import translator
from vivace.verbs.compare import run_of
from vivace.verbs.recorded import recorded_data
from vivace.verbs.reportfiles import Folder, check_no_poorer, check_page, data_folders, folder_of
from vivace.verbs.runs import Run, read_run

__all__ = ["Report", "findings_of", "report"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report that was written."""

    report: Path
    bytes: int
    sections: tuple[str, ...]
    """The names of its sections: summary, curves, mistakes …"""
    not_measured: tuple[tuple[str, str], ...]
    """(what it does not have, the command that measures it)."""
    card: Path | None = None
    """The model card, if one was written."""
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [{"what": what, "command": command} for what, command in self.not_measured]
        return {
            "report": str(self.report),
            "bytes": self.bytes,
            "sections": list(self.sections),
            "not_measured": rows,
            "card": None if self.card is None else str(self.card),
            "warnings": list(self.warnings),
        }


def report(
    bundle: Bundle | str | Path,
    data: AnyData | None = None,
    *,
    out: str | Path | None = None,
    lang: str = "en",
    card: str | Path | None = None,
    split: str | None = None,
    batch_size: int = 250,
    threads: int | None = None,
    device: str = "auto",
    cache_dir: str | Path | None = None,
    on_bad_image: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Write the report of a run or a bundle as one HTML file that needs no network and no script.

    bundle: a bundle, its folder, or that of a run. data: images to look at, as for `train`; None: those that the run
    was trained on, where they lay then, if the cache holds them; without any the report has no images. out: the file;
    None: report.html in the run's folder, or beside a bundle its name with -report.html. lang: "en" or "zh". card: also
    write a model card there, in the form that Hugging Face's hub reads as README.md. split, batch_size, threads,
    device, cache_dir, on_bad_image: as for `evaluate`.
    Raises OutputPathError if a file exists that vivace did not write, or without `data` and `out` a report that shows
    more than this one would, MissingExtra without Jinja2, ConfigError for an
    unknown `lang`, RunFolderError for a run that has not finished, and what `evaluate` raises.
    """
    translator(lang)
    with collected_warnings() as warnings:
        opened, given = (bundle, bundle.folder) if isinstance(bundle, Bundle) else _opened(bundle)
        folder = folder_of(given, opened)
        target = folder.default_out if out is None else Path(out)
        if card is not None and Path(card).resolve() == target.resolve():
            raise OutputPathError(f"`card` is the report itself: got {card} for both. Give another name for one.")
        run = None if folder.run is None or data is not None else read_run(folder.run)
        outside = data_folders(run and run.where if data is None else Data.of(data).where)
        told = check_page(target, own=folder.run, inputs=[opened.folder], outside=outside, option="`out`")
        replaced = [(target, told)]
        if card is not None:
            # a card is no page: none of a run's files is one
            replaced += [(Path(card), check_page(Path(card), inputs=[opened.folder], outside=outside, option="`card`"))]
        found = _measured(
            opened,
            run,
            data,
            split=split,
            on_bad_image=on_bad_image,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            predictor={"batch_size": batch_size, "threads": threads, "device": device},
            progress=progress,
        )
        page = page_of(_sources(opened, folder, found, given=data is not None, device=device))
        for line in contradiction_lines(page.contradictions):
            warn(line)
        html = render(page, lang=lang)
        if data is None and out is None:
            check_no_poorer(target, html)
        write_text(target, html, option="`out`")
        if card is not None:
            write_text(Path(card), card_of(page), option="`card`")
        for path, what in replaced:
            warn_of_replaced(path, what)
    return Report(
        report=target,
        bytes=target.stat().st_size,
        sections=sections_of(page),
        not_measured=page.not_measured,
        card=None if card is None else Path(card),
        warnings=tuple(warnings),
    )


def _opened(given: Any) -> tuple[Bundle, Path]:
    """The bundle in a folder, and the folder. Raises RunFolderError for a run that has none yet."""
    run_of(given)
    return load_bundle(given), Path(given)


def _measured(
    bundle: Bundle,
    run: Run | None,
    data: AnyData | None,
    *,
    predictor: dict[str, Any],
    cache_dir: Path | None,
    progress: Callable[[int, int], None],
    **options: Any,
) -> MeasuredSplit | None:
    """The answers to the data, or to those of the run if they are still there; None if there are none."""
    own, fingerprint = data is None, None
    if own:
        data, fingerprint = _data_of(run, cache_dir)
    if data is None:
        return None
    made = Predictor(bundle, **predictor)
    try:
        return measure(made, data, cache_dir=cache_dir, fingerprint=fingerprint, progress=progress, **options)
    except (DataError, CacheDamaged) as error:
        if not own or options["split"] is not None:
            raise
        # nobody asked for these data: what is known without them is still worth a report
        warn(f"the report has no images: {first_line(error)}")
        return None


def _data_of(run: Run | None, cache_dir: Path | None) -> tuple[AnyData | None, str | None]:
    """The data of the run and their fingerprint, if they are where they lay and the cache knows them; a warning says if
    they are not."""
    if run is None or run.data is None:
        return None, None
    try:
        return recorded_data(run, run, cache_dir), run.fingerprint
    except InputError as error:
        warn(f"the report has no images: {first_line(error)}")
        return None, None


def _sources(bundle: Bundle, folder: Folder, found: MeasuredSplit | None, *, given: bool, device: str) -> Sources:
    sources = folder.sources(bundle)
    if found is None:
        return sources
    info = bundle.info
    labels = found.measured.labels_N if found.measured.hits_NK is None else None
    answers = answers_of(
        found.measured,
        bundle.classes,
        temperature=info.temperature,
        thresholds=info.thresholds,
        reliance=told_of(bundle.uncertainty(), found.measured.probs_NK, labels),
        heat=heat_of(bundle, found.measured, info.thresholds, device=device),
        slices=slices_of(found.measured, bundle.classes, info.thresholds, clusters_N=found.clusters_N),
    )
    scores = measured_scores(found.measured, bundle.classes, info.thresholds) if given else ()
    shown = sources.with_answers(
        answers,
        findings_of(found.audit),
        scores=scores,
        measured_on=found.data if given else None,
        num_trained_on=found.num_trained_on,
        folders=found.folders,
    )
    if shown.answers is None:
        warn(
            f"a private run's report shows images of a test split alone: of these ({found.measured.split}) it has none"
        )
    return shown


def findings_of(audit: Audit) -> Sequence[tuple[str, str, int]]:
    """(severity, message, number of images) of the findings, the most severe first."""
    order = ("refuse", "quarantine", "warning")
    found = sorted(audit.findings, key=lambda finding: order.index(finding.severity))
    return [(finding.severity, finding.message, len(finding.names)) for finding in found]
