"""What a report shows of corruptions and attacks, from the values of robustness.json, which may be anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vivace.reporting.page.reading import clean, items, mapping, number, text, texts, whole

__all__ = ["Attacked", "Bar", "Corrupted", "attacked_of", "corrupted_of"]

MAX_ROWS, MAX_WARNINGS, NUM_SEVERITIES, MAX_RECORDS = 40, 8, 5, 20


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An accuracy, [0, 1], with its interval where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """Accuracy under corruptions."""

    data: str
    """The name of the images' data."""
    num_images: int
    split: str
    is_trained_on: bool
    """Whether the network was trained on some of the images, as far as that is known."""
    constants: str
    clean: Bar
    mean: Bar
    families: tuple[Bar, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    """(corruption, accuracy at each of the five severities)."""
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Accuracy under attack."""

    data: str
    """The name of the images' data."""
    num_images: int
    split: str
    is_trained_on: bool
    """Whether the network was trained on some of the images, as far as that is known."""
    threat: str
    clean: Bar
    robust: Bar
    is_standard: bool
    steps: tuple[Bar, ...]
    """What the attacks left that ran to their end."""
    methods: tuple[str, ...]
    """All that were run."""
    deployed: Bar | None
    deployed_as: str
    warnings: tuple[str, ...]


def corrupted_of(kept: Mapping[str, Any]) -> tuple[Corrupted, ...]:
    """What was kept, the newest first; what makes no sense is left out."""
    found = (_corrupted(values) for values in _records(kept, "corruptions"))
    return tuple(one for one in found if one is not None)


def attacked_of(kept: Mapping[str, Any]) -> tuple[Attacked, ...]:
    """What was kept, the newest first, weaker suites behind the standard one; what makes no sense is left out."""
    found = (_attacked(values) for values in _records(kept, "attack"))
    # a weaker suite finds less, and looks better
    return tuple(sorted((one for one in found if one is not None), key=lambda one: not one.is_standard))


def _records(kept: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Of each kind one; a single one, as vivace once kept it, is no list."""
    rows = items(kept, name)[-MAX_RECORDS:] or [mapping(kept, name)]
    return [row for row in reversed(rows) if isinstance(row, Mapping)]


def _corrupted(values: Mapping[str, Any]) -> Corrupted | None:
    clean_bar, mean = _bar(values, "clean"), _bar(values, "mean")
    count = whole(values, "num_images")
    cells = mapping(values, "cells")
    rows = tuple((clean(str(name), 40).replace("_", " "), _fractions(cells, name)) for name in list(cells)[:MAX_ROWS])
    if clean_bar is None or mean is None or not count:
        return None
    families = mapping(values, "families")
    bars = (_bar(families, name) for name in list(families)[:MAX_ROWS])
    return Corrupted(
        data=text(values, "data", 120) or "?",
        num_images=count,
        split=text(values, "split", 40) or "?",
        is_trained_on=_is_trained_on(values),
        constants=text(values, "constants", 40) or "?",
        clean=clean_bar,
        mean=mean,
        families=tuple(bar for bar in bars if bar is not None),
        rows=tuple((name, row) for name, row in rows if len(row) == NUM_SEVERITIES),
        left_out=texts(values, "left_out", most=MAX_ROWS, limit=40),
    )


def _attacked(values: Mapping[str, Any]) -> Attacked | None:
    clean_bar, robust, count = _bar(values, "clean"), _bar(values, "robust"), whole(values, "num_images")
    # an attack finds mistakes and mends none
    if clean_bar is None or robust is None or not count or robust.value > clean_bar.value:
        return None
    steps, methods = [], []
    for step in items(values, "attacks")[:MAX_ROWS]:
        name, left = text(step, "name", 20), number(step, "robust_so_far", 0, 1)
        methods += [] if name is None else [name]
        # what did not run to its end left nothing that it could have found
        if name is not None and left is not None and step.get("is_complete") is not False:
            steps.append(Bar(name=name, value=left))
    return Attacked(
        data=text(values, "data", 120) or "?",
        num_images=count,
        split=text(values, "split", 40) or "?",
        is_trained_on=_is_trained_on(values),
        threat=text(values, "threat", 40) or "?",
        clean=clean_bar,
        robust=robust,
        is_standard=values.get("is_standard") is True,
        steps=tuple(steps),
        methods=tuple(methods),
        deployed=_bar(values, "deployed"),
        deployed_as=text(values, "deployed_as", 60) or "?",
        warnings=texts(values, "warnings", most=MAX_WARNINGS),
    )


def _is_trained_on(values: Mapping[str, Any]) -> bool:
    """Whether the network was trained on some of the images, going by their split where nobody counted them."""
    count = whole(values, "num_images_trained_on")
    return values.get("split") in ("train", "all") if count is None else count > 0


def _bar(values: Mapping[str, Any], name: str) -> Bar | None:
    score = mapping(values, name)
    value, low, high = (number(score, key, 0, 1) for key in ("accuracy", "low", "high"))
    return None if value is None else Bar(name=clean(str(name), 40), value=value, low=low, high=high)


def _fractions(values: Mapping[str, Any], name: str) -> tuple[float, ...]:
    found = [cell for cell in items(values, name)[:NUM_SEVERITIES] if isinstance(cell, int | float)]
    return tuple(float(cell) for cell in found if 0 <= cell <= 1)
