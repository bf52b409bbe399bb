"""The report of a search as an HTML page, beside its receipt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vivace.acceleration.splits import Images
from vivace.bundle import Bundle, BundleInfo
from vivace.config import to_dict
from vivace.errors import MissingExtra, first_line
from vivace.evaluation.slicing import slices_of
from vivace.evaluation.uncertainty import told_of
from vivace.files import sha256_of
from vivace.heatmaps.mistakes import heat_of
from vivace.metrics.measured import Measured
from vivace.notices import warn
from vivace.outputs import write_text
from vivace.reporting.page.about import Sources, page_of
from vivace.reporting.page.answers import answers_of
from vivace.reporting.page.render import render
from vivace.uncertainty.record import Uncertainty

__all__ = ["PAGE", "measured_on", "write_page"]

PAGE = "report.html"


def measured_on(images: Images, probs_NK: np.ndarray) -> Measured:
    """The answers of a variant to the images that it was certified on, whose names are their positions."""
    sets, stored, view = images.label_sets_MK, images.stored_NHWC, images.preprocess.view
    return Measured(
        split=images.name,
        probs_NK=probs_NK,
        labels_N=images.labels,
        names=[f"{images.name}/{row}" for row in images.rows.tolist()],
        images=lambda some: view(np.asarray(stored[images.rows[some]])),
        hits_NK=None if sets is None else sets[images.labels],
    )


def write_page(
    path: Path,
    out: Path,
    info: BundleInfo,
    files: Bundle | Path,
    receipt: dict[str, Any],
    measured: Measured | None,
    thresholds: Uncertainty | None = None,
    network: Bundle | None = None,
) -> None:
    """Write the page of a search. out: the new bundle. files: the bundle, or the folder that becomes one.

    measured: the winner's answers; None: nothing won. thresholds: those of the winner. network: the winner, of whose
    network heat maps are made, in float32. What prevents it, such as a library that is not installed, is a warning:
    the search is what counts.
    """
    try:
        answers = None
        if measured is not None:
            # the temperature is in the weights that all variants share
            labels = measured.labels_N if measured.hits_NK is None else None
            answers = answers_of(
                measured,
                info.classes,
                temperature=info.temperature,
                thresholds=info.thresholds,
                reliance=told_of(thresholds, measured.probs_NK, labels),
                heat=None if network is None else heat_of(network, measured, info.thresholds),
                slices=slices_of(measured, info.classes, info.thresholds),
            )
        manifest = {**to_dict(info), "files": _facts(files)}
        private = [str(folder) for folder in (out.parent, out.parent.resolve()) if folder.is_absolute()]
        sources = Sources(
            name=out.name, place=out.name, manifest=manifest, receipt=receipt, answers=answers, private=private
        )
        write_text(path, render(page_of(sources)), option="the report's page")
    except MissingExtra as error:
        warn(f"no page of the report: {error}")
    except Exception as error:
        warn(f"the page of the report was not written: {type(error).__name__}: {first_line(error)}")


def _facts(files: Bundle | Path) -> dict[str, Any]:
    """SHA-256 and size of the files of a bundle."""
    folder = files if isinstance(files, Path) else files.folder
    names = sorted(path.name for path in folder.iterdir()) if isinstance(files, Path) else files.files
    return {name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
