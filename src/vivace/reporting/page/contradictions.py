"""What one number, or two, may not be: the checks that the rules of `consistency` are made of."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vivace.reporting.page.reading import clean, mapping
from vivace.statistics.proportions import wilson_interval

__all__ = ["ROUNDING", "Contradiction", "at_most", "found_out", "interval", "of_images", "ranges", "value_at"]

FILES = (".json", ".csv")
# rows of a table, and levels that are looked through
MAX_ROWS, MAX_DEPTH = 2000, 6
# of numbers that were computed in another order
ROUNDING = 1e-6
# of a 95 % interval; the one of a mean over images is Wilson's too
INTERVAL = 2e-3
FRACTION = re.compile(
    r"^(val_|test_|train_|macro_|mean_)?(top1|top5|map|map_micro|exact_match|f1|f1_macro|f1_micro|balanced_accuracy|"
    r"hamming_loss|ece|accuracy|precision|recall|coverage|risk|robust|robust_so_far|sample_rate|delta)(_low|_high)?$"
)
NOT_NEGATIVE = re.compile(r"^(num_\w+|(\w+_)?seconds|epochs|steps?|saved_epoch|nll|bce|\w+_loss|epsilon|p50_ms|bytes)$")


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """A thing that can't be true."""

    rule: str
    """The key of its words: "contradiction." and this."""
    values: Mapping[str, str] = field(default_factory=dict)
    """What the words name: places such as result.json: val_top1, and numbers."""


def value_at(values: Any, *path: str) -> float | None:
    """The finite number at a path of keys."""
    for key in path[:-1]:
        values = mapping(values, key)
    found = values.get(path[-1]) if isinstance(values, Mapping) else None
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    # whole numbers may have more digits than a float can hold
    return float(found) if abs(found) < 1e300 and math.isfinite(found) else None


def shown(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.6g}"


def found_out(rule: str, **values: object) -> Contradiction:
    told = {
        name: shown(value) if isinstance(value, float) else clean(str(value), 120) for name, value in values.items()
    }
    return Contradiction(rule=rule, values=told)


def ranges(values: Any, place: str, depth: int = 0) -> Iterator[Contradiction]:
    """Fractions outside of [0, 1], what can't be negative, and intervals without their estimate, at any depth."""
    if depth > MAX_DEPTH:
        return
    if isinstance(values, list | tuple):
        for row in values[:MAX_ROWS]:
            yield from ranges(row, place, depth + 1)
    if not isinstance(values, Mapping):
        return
    for key in list(values)[:MAX_ROWS]:
        # of a file itself, result.json: top1
        name = f"{place}{': ' if place.endswith(FILES) else '.'}{key}"
        number = value_at(values, key)
        if number is None:
            yield from ranges(values[key], name, depth + 1)
        elif FRACTION.match(str(key)) and not -ROUNDING <= number <= 1 + ROUNDING:
            yield found_out("range", name=name, value=number)
        elif NOT_NEGATIVE.match(str(key)) and number < 0:
            yield found_out("negative", name=name, value=number)
        low, high = (value_at(values, f"{key}{end}") for end in ("_low", "_high"))
        if key == "accuracy":
            low, high = value_at(values, "low"), value_at(values, "high")
        if number is not None and low is not None and high is not None:
            yield from interval(name, number, low, high)


def interval(name: str, value: float, low: float, high: float) -> Iterator[Contradiction]:
    if not low - ROUNDING <= value <= high + ROUNDING:
        yield found_out("interval", name=name, value=value, low=low, high=high)


def of_images(
    name: str, count: float | None, value: float | None, ends: tuple[float | None, ...]
) -> Iterator[Contradiction]:
    """A fraction of so many images: a whole number of them, and the interval that these give."""
    if count is None or value is None or not 1 <= count < 1e9 or not 0 <= value <= 1:
        return
    right = value * count
    if abs(right - round(right)) > max(0.01, ROUNDING * count):
        yield found_out("parts", name=name, value=value, count=count)
        return
    low, high = wilson_interval(min(count, round(right)), int(count))
    if any(end is not None and abs(end - true) > INTERVAL for end, true in zip(ends, (low, high), strict=True)):
        told = " – ".join("?" if end is None else shown(end) for end in ends)
        yield found_out("width", name=name, value=value, count=count, low=low, high=high, recorded=told)


def at_most(
    name: str, value: float | None, other: str, limit: float | None, slack: float = ROUNDING
) -> Iterator[Contradiction]:
    if value is not None and limit is not None and value > limit + slack:
        yield found_out("more", name=name, value=value, other=other, limit=limit)
