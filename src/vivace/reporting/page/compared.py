"""Two runs side by side: from their answers to the same images to what a page shows of them.

Shape suffixes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vivace.metrics.calibration import expected_calibration_error
from vivace.metrics.measured import Measured, reliability
from vivace.reporting.page.charts import Chart, overlaid
from vivace.reporting.page.facts import Page, Picture, Reliability
from vivace.reporting.page.pictures import pictures
from vivace.reporting.page.reading import clean
from vivace.statistics.multiple import holm
from vivace.statistics.paired import exact_p_value

__all__ = ["ClassChange", "Differing", "Side", "Verdict", "Versus", "versus_of"]

# images that only one of the two has right, for each of them
MAX_SHOWN = 24
NAME = 120
MAX_CLASSES = 2000


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the paired test gave. Accuracies and differences are fractions; the difference is B less A."""

    data: str
    split: str
    num_images: int
    num_left_out: int
    difference: float
    low: float
    high: float
    p_value: float
    better: str | None
    """A or B; None: not significant."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two."""

    letter: str
    """A or B, as the page calls it."""
    path: str
    page: Page
    """What its own report would say."""
    top1: float
    low: float
    high: float
    num_only_right: int
    reliability: Reliability


@dataclass(frozen=True, kw_only=True)
class Differing:
    """An image that only one of the two has right, with both answers."""

    picture: Picture
    """With what A said."""
    other: str
    other_percent: float
    """What B said, and how likely it called that."""


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """A class: the fraction of its images that each has right, and whether chance explains the difference."""

    name: str
    support: int
    first: float
    second: float
    num_only_first: int
    num_only_second: int
    p_value: float
    """Of McNemar's exact test, for all classes at once (Holm)."""


@dataclass(frozen=True, kw_only=True)
class Versus:
    """All that the page says."""

    verdict: Verdict
    first: Side
    second: Side
    classes: tuple[ClassChange, ...]
    """Those with images, the largest differences first."""
    only_first: tuple[Differing, ...]
    only_second: tuple[Differing, ...]
    curves: tuple[Chart, ...] = ()

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.first, self.second


def versus_of(
    verdict: Verdict,
    names: Sequence[str],
    answers: tuple[Measured, Measured],
    pages: tuple[Page, Page],
    paths: tuple[str, str],
    rows: tuple[Sequence[Mapping[str, str | None]], Sequence[Mapping[str, str | None]]],
    top1: tuple[tuple[float, float, float], tuple[float, float, float]],
    *,
    shows_images: bool = True,
) -> Versus:
    """What is shown of two sets of answers to the same images, whose classes have one order.

    names: of the K classes. paths: as the two were named. rows: of each one's metrics.csv. top1: accuracy with its
    interval, of each. shows_images: whether the page may have pictures.
    """
    shown = [clean(str(name), NAME) for name in names]
    probs = [found.probs_NK for found in answers]
    labels = answers[0].labels_N
    right = [found.argmax(1) == labels for found in probs]
    only = [right[0] & ~right[1], right[1] & ~right[0]]
    spent = [0]
    sides = [
        Side(
            letter="AB"[place],
            path=clean(paths[place], 200),
            page=pages[place],
            top1=top1[place][0],
            low=top1[place][1],
            high=top1[place][2],
            num_only_right=int(only[place].sum()),
            reliability=Reliability(
                bins=reliability(probs[place], labels), ece=expected_calibration_error(probs[place], labels)
            ),
        )
        for place in (0, 1)
    ]
    return Versus(
        verdict=verdict,
        first=sides[0],
        second=sides[1],
        classes=_class_changes(shown, labels, right, only),
        only_first=_differing(answers, shown, only[0], spent, winner=0) if shows_images else (),
        only_second=_differing(answers, shown, only[1], spent, winner=1) if shows_images else (),
        curves=overlaid(*rows),
    )


def _class_changes(
    names: Sequence[str], labels_N: np.ndarray, right: Sequence[np.ndarray], only: Sequence[np.ndarray]
) -> tuple[ClassChange, ...]:
    count = len(names)
    support = np.bincount(labels_N, minlength=count)
    hits, alone = ([np.bincount(labels_N[some], minlength=count) for some in both] for both in (right, only))
    there = np.flatnonzero(support)
    adjusted = holm(np.array([exact_p_value(int(alone[0][row]), int(alone[1][row])) for row in there]))
    found = [
        ClassChange(
            name=names[int(row)],
            support=int(support[row]),
            first=float(hits[0][row] / support[row]),
            second=float(hits[1][row] / support[row]),
            num_only_first=int(alone[0][row]),
            num_only_second=int(alone[1][row]),
            p_value=float(p_value),
        )
        for row, p_value in zip(there, adjusted, strict=True)
    ]
    return tuple(sorted(found, key=lambda row: (row.p_value, -abs(row.second - row.first)))[:MAX_CLASSES])


def _differing(
    answers: tuple[Measured, Measured], names: Sequence[str], only_N: np.ndarray, spent: list[int], *, winner: int
) -> tuple[Differing, ...]:
    """Those where the other was surest of its wrong answer."""
    first, second = answers
    wrong = answers[1 - winner].probs_NK
    rows = np.flatnonzero(only_N)
    rows = rows[np.argsort(-wrong[rows].max(1), kind="stable")][:MAX_SHOWN]
    told = [
        (
            int(row),
            names[int(first.labels_N[row])],
            names[int(first.probs_NK[row].argmax())],
            float(first.probs_NK[row].max()),
        )
        for row in rows
    ]
    made = pictures(first, told, spent)
    return tuple(
        Differing(
            picture=made[row],
            other=names[int(second.probs_NK[row].argmax())],
            other_percent=100 * float(second.probs_NK[row].max()),
        )
        for row, *_ in told
        if row in made
    )
