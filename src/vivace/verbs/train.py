"""vivace.train: training, at whose end a bundle of a network of the user's own gets a graph, and a run its report.

Training knows neither exporters nor reports, which stand above it: it is given them here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

from vivace.outputs import write_text
from vivace.training.completion import Complete, Finished
from vivace.training.result import TrainResult
from vivace.training.train import train as run_training

if TYPE_CHECKING:
    import numpy as np

    from vivace.bundle import Bundle

__all__ = ["train"]

P = ParamSpec("P")


def _with_graph(bundle: Bundle, images_NHWC: np.ndarray, images: str) -> str | None:
    from vivace.exporting.graph_bundle import add_graph

    return add_graph(bundle, images_NHWC, images)


def _report(finished: Finished) -> Path:
    from vivace.evaluation.slicing import slices_of
    from vivace.evaluation.uncertainty import told_of
    from vivace.heatmaps.mistakes import heat_of
    from vivace.reporting.page.about import page_of
    from vivace.reporting.page.answers import answers_of
    from vivace.reporting.page.render import render
    from vivace.verbs.report import findings_of
    from vivace.verbs.reportfiles import Folder

    info, folder = finished.bundle.info, Folder(finished.run, finished.run)
    measured = finished.measured.get("test") or finished.measured["val"]
    labels = measured.labels_N if measured.hits_NK is None else None
    answers = answers_of(
        measured,
        info.classes,
        temperature=info.temperature,
        thresholds=info.thresholds,
        reliance=told_of(finished.bundle.uncertainty(), measured.probs_NK, labels),
        heat=heat_of(finished.bundle, measured, info.thresholds),
        slices=slices_of(measured, info.classes, info.thresholds),
    )
    findings = findings_of(finished.audit)
    sources = folder.sources(finished.bundle).with_answers(answers, findings, folders=finished.folders)
    write_text(folder.default_out, render(page_of(sources)), option="the report")
    return folder.default_out


def _completed(run: Callable[P, TrainResult]) -> Callable[P, TrainResult]:
    """The training that adds both; its signature is without the parameter that does so."""

    @functools.wraps(run)
    def train(*args: P.args, **kwargs: P.kwargs) -> TrainResult:
        kwargs.setdefault("complete", Complete(graph=_with_graph, report=_report))
        return run(*args, **kwargs)

    signature = inspect.signature(run)
    shown = [parameter for name, parameter in signature.parameters.items() if name != "complete"]
    train.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return train


train = _completed(run_training)
