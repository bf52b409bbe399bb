"""The page of `vivace.compare`: two runs side by side in one HTML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vivace.bundle import Bundle
from vivace.metrics.measured import Measured
from vivace.notices import warn
from vivace.outputs import warn_of_replaced, write_text
from vivace.reporting.page.about import page_of
from vivace.reporting.page.compared import Verdict, versus_of
from vivace.reporting.page.consistency import contradiction_lines
from vivace.reporting.page.reading import clean
from vivace.reporting.page.render import check_renders, render_versus
from vivace.reporting.page.words import translator
from vivace.verbs.reportfiles import check_page, data_folders, folder_of
from vivace.verbs.runs import Run

if TYPE_CHECKING:
    from vivace.verbs.compare import RunComparison

__all__ = ["ComparisonFile", "Side"]


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    path: str
    """As it was named."""
    bundle: Bundle
    run: Run | None
    """None: it is a bundle outside of a run."""


class ComparisonFile:
    """Where a page goes. Raises ConfigError, MissingExtra or OutputPathError at once, before anything is computed."""

    def __init__(self, path: Path, lang: str, *, inputs: Sequence[Path], places: Sequence[object]) -> None:
        """inputs: the bundles. places: where the images are or may be: in a folder of these no page may lie."""
        translator(lang)
        check_renders()
        self.path, self.lang = path, lang
        outside = data_folders(*places)
        self._replaced = check_page(path, inputs=inputs, outside=outside, option="`report`")

    def write(self, compared: RunComparison, sides: Sequence[Side], answers: tuple[Measured, Measured]) -> None:
        """Write it. answers: of each to the same images in the same order.

        Where one of the two was trained privately, its validations are nobody's business, and images of a test split
        alone are shown: others may have been trained on, which its bundle does not tell.
        """
        sources = [folder_of(Path(side.path), side.bundle).sources(side.bundle) for side in sides]
        pages = page_of(sources[0]), page_of(sources[1])
        for source, page in zip(sources, pages, strict=True):
            for line in contradiction_lines(page.contradictions):
                warn(f"{source.place}: {line}")
        is_private = any(page.privacy is not None for page in pages)
        first, second = answers
        html = render_versus(
            versus_of(
                _verdict(compared),
                sides[0].bundle.classes,
                (first, _reordered(second, sides[1].bundle.classes, sides[0].bundle.classes)),
                pages,
                # a path of this machine says more than a reader needs to know
                (sources[0].place, sources[1].place),
                ((), ()) if is_private else (sources[0].curves, sources[1].curves),
                _top1(compared),
                shows_images=not is_private or compared.split == "test",
            ),
            lang=self.lang,
        )
        write_text(self.path, html, option="`report`")
        warn_of_replaced(self.path, self._replaced)


def _verdict(compared: RunComparison) -> Verdict:
    first, second = compared.runs
    better = None if not compared.significant else "A" if first.num_only_right > second.num_only_right else "B"
    return Verdict(
        data=clean(compared.data, 120),
        split=compared.split,
        num_images=compared.num_images,
        num_left_out=compared.num_images_left_out,
        difference=compared.difference,
        low=compared.difference_low,
        high=compared.difference_high,
        p_value=compared.p_value,
        better=better,
        warnings=tuple(clean(line, 500) for line in compared.warnings[:50]),
    )


def _top1(compared: RunComparison) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    first, second = ((one.top1, one.top1_low, one.top1_high) for one in compared.runs)
    return first, second


def _reordered(found: Measured, own: Sequence[str], wanted: Sequence[str]) -> Measured:
    """The answers with the classes in another order: two runs may number the same classes differently."""
    if tuple(own) == tuple(wanted):
        return found
    places = {name: place for place, name in enumerate(wanted)}
    moved = np.array([places[name] for name in own], dtype=np.int64)
    probs_NK = np.empty_like(found.probs_NK)
    probs_NK[:, moved] = found.probs_NK
    return dataclasses.replace(found, probs_NK=probs_NK, labels_N=moved[found.labels_N])
