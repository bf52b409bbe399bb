"""The geometry of the figures of a report; the templates draw it as SVG, coloured by the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Chart", "Line", "Point", "Scatter", "curves", "overlaid", "scatter"]

WIDTH, HEIGHT = 340, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 30
# of numbers in the figure of a search: width and height
NEAR, LETTER = 14, 11
# of a curve; a figure has no more columns of pixels
MAX_POINTS = 400
# with fewer points each is marked
MARKED_POINTS = 30
# beyond it a value is a fault, and would hide the others
LARGEST = 1e6


@dataclass(frozen=True)
class Line:
    """A curve in parts: a missing value leaves a gap."""

    kind: str
    """training, validation, attacked or rate, or of two runs first and second: its colour."""
    parts: tuple[str, ...]
    """Points as SVG has them, "x,y x,y"."""
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Chart:
    """Curves over the epochs of a run."""

    what: str
    """loss, top1, map or lr."""
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    mark: tuple[float, float] | None = None
    """Where the bundle's weights were validated."""
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(line.kind for line in self.lines)


@dataclass(frozen=True)
class Point:
    """A variant in the figure of a search."""

    number: int
    name: str
    x: float
    y: float
    bound: float
    """The height of its upper bound."""
    label: float
    """The height of its number, above those of points that are as fast."""
    kind: str
    """won, certified or other."""


@dataclass(frozen=True)
class Scatter:
    """Accuracy drop against latency."""

    points: tuple[Point, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    budget: float | None
    width: int = 680
    height: int = 320


def curves(rows: Sequence[Mapping[str, str | None]], saved_epoch: float | None) -> tuple[Chart, ...]:
    """Loss, accuracy and learning rate of a run, from its metrics.csv; charts without a number are left out."""
    # evenly thinned; the last row stays
    kept = [rows[index] for index in _spread(len(rows))]
    epochs = _column(kept, "epoch")
    has_sets = bool(rows) and "val_map" in rows[0]
    score, trained = ("map", "train_label_accuracy") if has_sets else ("top1", "train_top1")
    judged = {"training": trained, "validation": f"val_{score}"}
    if bool(rows) and "val_robust" in rows[0]:
        judged["attacked"] = "val_robust"
    charts = (
        _chart("loss", epochs, {"training": "train_loss", "validation": "val_loss"}, kept, 1.0, None),
        _chart(score, epochs, judged, kept, 100.0, saved_epoch),
        _chart("lr", epochs, {"rate": "lr"}, kept, 1.0, None),
    )
    return tuple(chart for chart in charts if chart is not None)


def overlaid(
    first: Sequence[Mapping[str, str | None]], second: Sequence[Mapping[str, str | None]]
) -> tuple[Chart, ...]:
    """Validation accuracy and loss of two runs over their epochs, from each one's metrics.csv.

    A chart is left out where one of the two has no number for it.
    """
    both = [[rows[index] for index in _spread(len(rows))] for rows in (first, second)]
    charts = []
    for what, name, factor in (("top1", "val_top1", 100.0), ("loss", "val_loss", 1.0)):
        # one table with a column for each: a row knows only its own run
        rows = [
            {"epoch": row.get("epoch"), kind: row.get(name)}
            for kind, own in zip(("first", "second"), both, strict=True)
            for row in own
        ]
        epochs = _column(rows, "epoch")
        if all(_finite(_column(rows, kind), epochs) for kind in ("first", "second")):
            chart = _chart(what, epochs, {"first": "first", "second": "second"}, rows, factor, None)
            charts += [] if chart is None else [chart]
    return tuple(charts)


def _spread(count: int) -> list[int]:
    if count <= MAX_POINTS:
        return list(range(count))
    return sorted({round(index * (count - 1) / (MAX_POINTS - 1)) for index in range(MAX_POINTS)})


def _column(rows: Sequence[Mapping[str, str | None]], name: str) -> list[float]:
    values = []
    for row in rows:
        try:
            value = float(row.get(name) or "nan")
        except ValueError:
            value = math.nan
        values.append(value if abs(value) <= LARGEST else math.nan)
    return values


def _chart(
    what: str,
    epochs: Sequence[float],
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, str | None]],
    factor: float,
    saved_epoch: float | None,
) -> Chart | None:
    series = {kind: [factor * value for value in _column(rows, name)] for kind, name in columns.items()}
    seen = [value for values in series.values() for value in _finite(values, epochs)]
    if not seen:
        return None
    # room for one point as for many
    high = max(epoch for epoch in epochs if math.isfinite(epoch))
    # what was validated before the first step alone has an axis too
    high = high if high > 0 else 1.0
    x_ticks, y_ticks = _ticks(0.0, high), _ticks(min(0.0, *seen) if what == "lr" else min(seen), max(seen))
    across = Scale((min(x_ticks[0], 0.0), max(high, x_ticks[-1])), (LEFT, WIDTH - RIGHT))
    along = Scale((y_ticks[0], y_ticks[-1]), (HEIGHT - BOTTOM, TOP))
    lines = []
    for kind, values in series.items():
        parts = _parts([(across(x), along(y)) for x, y in zip(epochs, values, strict=True)])
        dots = tuple(point for part in parts for point in part) if len(rows) <= MARKED_POINTS else ()
        lines.append(Line(kind, tuple(_points(part) for part in parts if len(part) > 1), dots))
    return Chart(
        what,
        tuple(lines),
        tuple((across(value), f"{value:g}") for value in x_ticks),
        tuple((along(value), f"{value:g}") for value in y_ticks),
        _mark(epochs, series["validation"], saved_epoch, across, along)
        if what in ("top1", "map") and "validation" in series
        else None,
    )


def _mark(
    epochs: Sequence[float], values: Sequence[float], saved_epoch: float | None, across: Scale, along: Scale
) -> tuple[float, float] | None:
    """Where the weights in the bundle were validated: at the last epoch, unless another is named."""
    known = [(x, y) for x, y in zip(epochs, values, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if not known:
        return None
    x, y = known[-1] if saved_epoch is None else min(known, key=lambda point: abs(point[0] - saved_epoch))
    return across(x), along(y)


def _finite(values: Sequence[float], epochs: Sequence[float]) -> list[float]:
    return [value for value, epoch in zip(values, epochs, strict=True) if math.isfinite(value) and math.isfinite(epoch)]


def _parts(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Runs of points without a gap."""
    parts: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isfinite(point[0]) and math.isfinite(point[1]):
            parts[-1].append(point)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _points(part: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in part)


class Scale:
    """Maps numbers of a range to coordinates."""

    def __init__(self, values: tuple[float, float], places: tuple[float, float]) -> None:
        self.low, self.start = values[0], places[0]
        self.factor = (places[1] - places[0]) / max(values[1] - values[0], 1e-12)

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) * self.factor, 2)


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, two or more."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(abs(low), 0.01), high + 0.5 * max(abs(high), 0.01)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def scatter(found: Sequence[tuple[str, float, float, float, str]], budget: float | None) -> Scatter | None:
    """The figure of a search from (name, ms, drop, bound, kind) of each variant, fastest first; drops in points."""
    if not found:
        return None
    logs = [math.log10(ms) for _, ms, *_ in found]
    heights = [value for _, _, drop, bound, _ in found for value in (drop, bound)]
    if budget is not None:
        heights.append(budget)
    y_ticks = _ticks(min(0.0, *heights), max(0.0, *heights))
    width, height = Scatter.width, Scatter.height
    margin = 0.08 * max(max(logs) - min(logs), 0.1)
    across = Scale((min(logs) - margin, max(logs) + margin), (LEFT, width - RIGHT))
    along = Scale((y_ticks[0], y_ticks[-1]), (height - BOTTOM, TOP))
    points: list[Point] = []
    for place, (log, (name, _, drop, bound, kind)) in enumerate(zip(logs, found, strict=True), 1):
        x, top = across(log), along(max(drop, bound))
        beside = [other.label for other in points if x - other.x < NEAR]
        label = round(min([top - 6, *(height - LETTER for height in beside)]), 2)
        points.append(Point(place, name, x, along(drop), top, max(label, LETTER), kind))
    x_ticks = tuple((across(math.log10(value)), f"{value:g}") for value in _log_ticks(min(logs), max(logs), margin))
    labels = tuple((along(value), f"{value:g}") for value in y_ticks)
    return Scatter(tuple(points), x_ticks, labels, None if budget is None else along(budget))


def _log_ticks(low: float, high: float, margin: float) -> list[float]:
    """Round numbers between two logarithms; evenly spaced ones where these are too close for 1, 2 and 5."""
    low, high = low - margin, high + margin
    decades = range(math.floor(low), math.ceil(high) + 1)
    values = [digit * 10.0**power for power in decades for digit in (1, 2, 5)]
    found = [value for value in values if low <= math.log10(value) <= high]
    if len(found) >= 2:
        return found
    return [value for value in _ticks(10**low, 10**high) if value > 0 and low <= math.log10(value) <= high]
