"""The worst parts of the images, as a report shows them."""

from __future__ import annotations

from collections.abc import Mapping

from vivace.metrics.slices import Slices
from vivace.reporting.page.facts import Picture, SliceFacts, SliceRow
from vivace.reporting.page.reading import clean

__all__ = ["examples_of", "slice_facts"]

NUM_ROWS = 12
# parts whose images are shown
NUM_SHOWN = 5


def examples_of(slices: Slices | None) -> list[int]:
    """Positions of the images of the parts that are shown with some."""
    return [] if slices is None else [row for part in slices.rows[:NUM_SHOWN] for row in part.examples]


def slice_facts(slices: Slices | None, made: Mapping[int, Picture]) -> SliceFacts | None:
    """made: position → picture, of the images that have one."""
    if slices is None or not slices.rows:
        return None
    rows = [
        SliceRow(
            kind=part.kind,
            names=tuple(clean(name, 120) for name in part.classes),
            part=part.part or 0,
            least=part.least or 0.0,
            most=part.most or 0.0,
            digits=part.digits,
            num_images=part.num_images,
            wrong=1 - part.accuracy,
            low=1 - part.high,
            high=1 - part.low,
            elsewhere=1 - part.expected,
            is_worse=part.is_worse,
            pictures=tuple(made[row] for row in part.examples if row in made) if index < NUM_SHOWN else (),
        )
        for index, part in enumerate(slices.rows[:NUM_ROWS])
    ]
    return SliceFacts(rows=tuple(rows), num_tested=slices.num_tested, num_worse=slices.num_worse)
