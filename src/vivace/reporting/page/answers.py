"""From a network's answers to the images of a split to what a report shows of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vivace.metrics.calibration import expected_calibration_error
from vivace.metrics.measured import Bin, Heat, Measured, confused_pairs, label_reliability, reliability, uncalibrated
from vivace.metrics.multilabel import evaluate_sets
from vivace.metrics.slices import Slices
from vivace.reporting.page.facts import Answers, Cell, ClassRow, HeatFacts, Picture, Reliability, Reliance
from vivace.reporting.page.pictures import choose, choose_of_sets, pictures
from vivace.reporting.page.reading import clean
from vivace.reporting.page.slices import examples_of, slice_facts

__all__ = ["MAX_CELLS", "MAX_ROWS", "answers_of"]

# of the matrix; of a thousand classes most of a million are empty
MAX_CELLS = 4000
MAX_ROWS = 2000
NAME = 120
# sizes of prediction sets that have a bar of their own
MAX_SIZES = 9


def answers_of(
    measured: Measured,
    classes: Sequence[str],
    *,
    temperature: float | None,
    thresholds: Sequence[float] = (),
    reliance: Mapping[str, Any] | None = None,
    heat: Heat | None = None,
    slices: Slices | None = None,
) -> Answers:
    """What is shown of the answers. temperature: by which they were calibrated; None: they were not, or by labels.

    reliance: the fields of a `Reliance`; None: the bundle has no thresholds. heat: of the worst mistakes. slices: the
    worst parts of the images.
    """
    names = tuple(clean(name, NAME) for name in classes)
    heat = Heat() if heat is None else heat
    if measured.hits_NK is not None:
        return _of_sets(measured, measured.hits_NK, names, thresholds, heat, slices)
    probs, labels = measured.probs_NK, measured.labels_N
    groups = confused_pairs(probs, labels)
    chosen, spent = choose(measured), [0]
    confidence = probs.max(1)
    told = [
        (row, names[labels[row]], names[probs[row].argmax()], float(confidence[row]))
        for row in (*chosen.mistakes, *examples_of(slices), *(row for rows in chosen.pairs.values() for row in rows))
    ]
    made = pictures(measured, told, spent, heat.pictures)
    shown = {pair: tuple(made[row] for row in rows if row in made) for pair, rows in chosen.pairs.items()}
    return Answers(
        split=measured.split,
        num_images=len(labels),
        num_mistakes=int((probs.argmax(1) != labels).sum()),
        multi_label=False,
        classes=names,
        cells=_cells(groups, len(names), labels, shown),
        rows=_rows(groups, names),
        mistakes=tuple(made[row] for row in chosen.mistakes if row in made),
        after=Reliability(bins=reliability(probs, labels), ece=expected_calibration_error(probs, labels)),
        before=None if temperature is None else _before(probs, labels, temperature),
        reliance=None if reliance is None else _cleaned(reliance),
        slices=slice_facts(slices, made),
        **_heat_facts(heat),
    )


def _heat_facts(heat: Heat) -> dict[str, Any]:
    """What is said of heat maps; the names of layers are those of a network, which may be anybody's."""
    facts = HeatFacts(method=heat.method, layer=clean(heat.layer, 120), side=heat.side) if heat.pictures else None
    return {"heat": facts, "no_heat": None if heat.missing is None else clean(heat.missing, 300)}


def _cleaned(reliance: Mapping[str, Any]) -> Reliance:
    """Texts of a bundle may be anybody's; of many sizes of sets the first ones are shown, with the rest as one."""
    found = Reliance(**reliance)
    rest = sum(fraction for _, fraction in found.sizes[MAX_SIZES:])
    last = ((found.sizes[MAX_SIZES][0], rest),) if rest else ()
    return dataclasses.replace(
        found,
        calibrated_on=clean(found.calibrated_on, 300),
        unlike=tuple((clean(name, 60), *numbers) for name, *numbers in found.unlike[:20]),  # type: ignore[misc]
        sizes=(*found.sizes[:MAX_SIZES], *last),
    )


def _before(probs_NK: np.ndarray, labels_N: np.ndarray, temperature: float) -> Reliability:
    probs = uncalibrated(probs_NK, temperature)
    return Reliability(bins=reliability(probs, labels_N), ece=expected_calibration_error(probs, labels_N))


def _cells(
    groups: dict[tuple[int, int], np.ndarray],
    num_classes: int,
    labels_N: np.ndarray,
    shown: dict[tuple[int, int], tuple[Picture, ...]],
) -> tuple[Cell, ...]:
    """The most frequent pairs in the order of the matrix; mistakes go before what is right where there are many."""
    support = np.bincount(labels_N, minlength=num_classes)
    kept = sorted(groups, key=lambda pair: (pair[0] == pair[1], -len(groups[pair])))[:MAX_CELLS]
    cells = []
    for true, predicted in sorted(kept):
        count = len(groups[true, predicted])
        fraction = count / int(support[true])
        # on a square-root scale errors of 2 % are still visible
        shade = round(0.08 + 0.84 * fraction**0.5, 3)
        pics = shown.get((true, predicted), ())
        cells.append(Cell(true=true, predicted=predicted, count=count, fraction=fraction, shade=shade, pictures=pics))
    return tuple(cells)


def _rows(groups: dict[tuple[int, int], np.ndarray], names: tuple[str, ...]) -> tuple[ClassRow, ...]:
    """Precision, recall and F1 of the classes, the worst first; without a matrix, which of many classes is vast."""
    hits, support, called = (np.zeros(len(names), dtype=np.int64) for _ in range(3))
    for (true, predicted), found in groups.items():
        support[true] += len(found)
        called[predicted] += len(found)
        hits[true] += len(found) * (true == predicted)
    rows = [
        ClassRow(
            name=name,
            support=int(support[row]),
            precision=float(hits[row] / max(called[row], 1)) if support[row] else None,
            recall=float(hits[row] / support[row]) if support[row] else None,
            # 2 · hits / (images + predictions) is the harmonic mean of the two
            f1=float(2 * hits[row] / (support[row] + called[row])) if support[row] else None,
        )
        for row, name in enumerate(names)
    ]
    return tuple(sorted(rows, key=_goodness)[:MAX_ROWS])


def _goodness(row: ClassRow) -> tuple[bool, float]:
    """Sorts the worst first, and what has no images last."""
    return row.f1 is None, row.f1 or 0.0


def _of_sets(
    measured: Measured,
    hits_NK: np.ndarray,
    names: tuple[str, ...],
    thresholds_K: Sequence[float],
    heat: Heat,
    slices: Slices | None,
) -> Answers:
    probs, wrong = measured.probs_NK, choose_of_sets(measured, thresholds_K)
    told = [(row, names[label], names[label], sure) for row, (label, sure) in wrong.items()]
    made = {
        row: dataclasses.replace(picture, absent="predicted" if hits_NK[row, wrong[row][0]] else "label")
        for row, picture in pictures(measured, told, [0], heat.pictures).items()
    }
    metrics = evaluate_sets(probs, hits_NK, names, thresholds_K)
    predicted = probs >= np.asarray(thresholds_K)
    rows = [
        ClassRow(
            name=row.name,
            support=row.support,
            precision=row.precision if row.support else None,
            recall=row.recall if row.support else None,
            f1=row.f1 if row.support else None,
            average_precision=row.average_precision,
            threshold=row.threshold,
        )
        for row in metrics.per_label
    ]
    bins: tuple[Bin, ...] = label_reliability(probs, hits_NK)
    return Answers(
        split=measured.split,
        num_images=len(probs),
        num_mistakes=int((predicted != hits_NK).any(1).sum()),
        multi_label=True,
        classes=names,
        rows=tuple(sorted(rows, key=_goodness)[:MAX_ROWS]),
        mistakes=tuple(made[row] for row in wrong if row in made),
        after=Reliability(bins=bins, ece=metrics.ece),
        slices=slice_facts(slices, made),
        **_heat_facts(heat),
    )
