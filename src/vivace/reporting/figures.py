"""Draws figures of runs, evaluations and searches as PNG files, from plain data: JSON values, arrays, a metrics.csv.

The colours are Okabe and Ito's, which colour-blind people can distinguish.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivace.reporting.canvas import new_figure, save_figure, short_name, width_of
from vivace.reporting.tables import read_rows
from vivace.screen import shown_pixels

__all__ = ["ablation", "confusion", "curves", "mistakes", "pareto"]

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
# with more classes numbers don't fit into the cells, or names don't fit beside the rows
MAX_CLASSES_WITH_NUMBERS = 25
MAX_CLASSES_WITH_NAMES = 110
MISTAKES_PER_ROW = 6
# labels of latencies whose logarithms differ by less than this are stacked
NEAR = 0.06
# columns that fit above a picture; a Chinese character takes two
MAX_TITLE_NAME_WIDTH = 15


def curves(metrics_csv: Path, path: Path, *, saved_epoch: float | None = None) -> None:
    """Draw loss, accuracy and learning rate over the epochs of a run as a PNG file.

    metrics_csv: the table of a run, a row per validation; missing values leave a gap. saved_epoch: the epoch at which
    the bundle's weights were validated, which is marked; None: the last one.
    Raises VivaceError if the table can't be read or is too large, MissingExtra without matplotlib.
    """
    rows = read_rows(metrics_csv)
    figure = new_figure(10.0, 3.4)
    loss_axes, top1_axes, lr_axes = figure.subplots(1, 3)
    epochs = _column(rows, "epoch")
    # mark the points of a short run
    style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(rows) <= 30 else {}
    has_sets = bool(rows) and "val_map" in rows[0]
    score, trained = ("map", "label_accuracy") if has_sets else ("top1", "top1")
    named = "mAP; in training: right labels (%)" if has_sets else "top-1 accuracy (%)"
    for axes, what, train_what, label, factor in (
        (loss_axes, "loss", "loss", "loss (nats)", 1),
        (top1_axes, score, trained, named, 100),
    ):
        axes.plot(epochs, factor * _column(rows, f"train_{train_what}"), color=BLUE, label="training", **style)
        # dashed, to be distinguishable without colour
        axes.plot(
            epochs, factor * _column(rows, f"val_{what}"), color=ORANGE, ls=(0, (4, 1)), label="validation", **style
        )
        axes.set_ylabel(label)
        axes.legend(frameon=False)
    val_top1 = _column(rows, f"val_{score}")
    if len(val_top1):
        saved = len(epochs) - 1 if saved_epoch is None else int(np.abs(epochs - saved_epoch).argmin())
        top1_axes.plot(epochs[saved], 100 * val_top1[saved], marker="o", markersize=8, mfc="none", color=ORANGE)
        top1_axes.set_title(_saved_title(epochs, val_top1, saved), fontsize=9)
    loss_axes.set_title("training: with augmentation and label smoothing", fontsize=9)
    lr_axes.plot(epochs, _column(rows, "lr"), color=GREEN, **style)
    lr_axes.set_ylabel("learning rate")
    lr_axes.set_ylim(bottom=0)
    lr_axes.set_title("at each validation", fontsize=9)
    for axes in (loss_axes, top1_axes, lr_axes):
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _saved_title(epochs: np.ndarray, val_top1: np.ndarray, saved: int) -> str:
    """The accuracy of the bundle's weights, and the best of the run if that is higher."""
    if not np.isfinite(val_top1).any():
        return ""
    title = f"in the bundle: {100 * val_top1[saved]:.2f} %, epoch {round(epochs[saved], 2):g}"
    best = int(np.nanargmax(val_top1))
    if not val_top1[saved] >= val_top1[best]:
        title += f"\nbest: {100 * val_top1[best]:.2f} %, epoch {round(epochs[best], 2):g}"
    return title


def _column(rows: Sequence[Mapping[str, str | None]], name: str) -> np.ndarray:
    """A column as float64 [rows]; NaN where there is no number."""
    values = []
    for row in rows:
        try:
            values.append(float(row.get(name) or "nan"))
        except ValueError:
            values.append(float("nan"))
    return np.asarray(values)


def confusion(matrix_KK: Sequence[Sequence[int]] | np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix as a PNG file, coloured by the percentage of each true class.

    matrix_KK: counts; rows are the true classes. Numbers are written into the cells for up to 25 classes, names for up
    to 110. Raises MissingExtra without matplotlib.
    """
    counts = np.asarray(matrix_KK)
    num_classes = len(classes)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(2.4 + 0.42 * num_classes, 3.6, 12.5))
    figure = new_figure(side + 1.2, side)
    from matplotlib.colors import PowerNorm

    axes = figure.subplots()
    # on a square-root scale errors of 2 % are still visible
    image = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
    figure.colorbar(image, ax=axes, shrink=0.8, label="images of the true class (%)", ticks=(0, 1, 5, 20, 50, 100))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if num_classes <= MAX_CLASSES_WITH_NAMES:
        size = 9 if num_classes <= MAX_CLASSES_WITH_NUMBERS else float(np.clip(420 / num_classes, 4.5, 8))
        names = [short_name(name) for name in classes]
        upright = num_classes <= 5 and max(map(width_of, names)) <= 12
        axes.set_xticks(range(num_classes), names, rotation=0 if upright else 90, fontsize=size)
        axes.set_yticks(range(num_classes), names, fontsize=size)
    if num_classes <= MAX_CLASSES_WITH_NUMBERS:
        largest = int(counts.max(initial=0))
        # up to five digits must fit in 0.33 inches
        size = 9 if num_classes <= 12 and largest < 10_000 else 6
        for row, column in np.argwhere(counts > 0):
            colour = "white" if percent[row, column] > 35 else "black"
            number = f"{counts[row, column]:,}"
            axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=size)
    right, total = int(np.trace(counts)), int(counts.sum())
    axes.set_title(f"{right:,} of {total:,} correct ({100 * right / max(total, 1):.2f} %)", fontsize=10)
    save_figure(figure, path)


def mistakes(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw misclassified images, six per row, as a PNG file.

    rows: each with "image" ([H, W, C], as `shown_pixels` takes it), "label", "predicted", and "probability" of the
    predicted class, in [0, 1]. Raises MissingExtra without matplotlib.
    """
    lines = max(1, -(-len(rows) // MISTAKES_PER_ROW))
    figure = new_figure(10.0, 2.2 * lines + 0.4)
    grid = figure.subplots(lines, MISTAKES_PER_ROW, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, row in zip(grid, rows, strict=False):
        image = shown_pixels(np.asarray(row["image"]))
        grey = image.shape[-1] == 1
        axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)
        truth, predicted = (short_name(row[key], MAX_TITLE_NAME_WIDTH) for key in ("label", "predicted"))
        axes.set_title(f"true: {truth}\n→ {predicted}, {100 * row['probability']:.0f} %", fontsize=8, loc="left")
    figure.suptitle(
        "the most confident mistakes: true → predicted, probability" if rows else "no mistakes", fontsize=10
    )
    save_figure(figure, path)


def ablation(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the effect of each technique on time and accuracy, with confidence intervals, as a PNG file.

    rows: from an ablation's report: "name", "speedup", "gain" as a fraction, and the bounds of both with the suffixes
    "_low" and "_high" (None: no bar). Raises MissingExtra without matplotlib.
    """
    figure = new_figure(9.0, 1.4 + 0.36 * len(rows))
    speed_axes, gain_axes = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    # on a linear scale one technique worth 30 points, or one interval from two seeds, would hide the rest
    for axes, key, neutral, factor, label, scale in (
        (speed_axes, "speedup", 1.0, 1.0, "time without it / time with it", {"value": "log", "base": 2}),
        (gain_axes, "gain", 0.0, 100.0, "gain in validation accuracy (points)", {"value": "symlog", "linthresh": 1.0}),
    ):
        values = np.array([factor * row[key] for row in rows])
        bounds = [(row[f"{key}_low"], row[f"{key}_high"]) for row in rows]
        reach = np.array(
            [
                (0.0, 0.0) if low is None else (value - factor * low, factor * high - value)
                for value, (low, high) in zip(values, bounds, strict=True)
            ]
        ).reshape(-1, 2)
        axes.axvline(neutral, color="black", lw=0.8)
        axes.errorbar(values, places, xerr=np.maximum(reach.T, 0), fmt="o", color=BLUE, ecolor=ORANGE, capsize=3)
        axes.set_xscale(**scale)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    speed_axes.set_yticks(places, [short_name(row["name"]) for row in rows], fontsize=9)
    speed_axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    counts = {row["n"] for row in rows}
    figure.suptitle(f"ablation of each technique, n = {', '.join(map(str, sorted(counts)))}", fontsize=10)
    save_figure(figure, path)


def pareto(rows: Sequence[Mapping[str, Any]], path: Path, *, max_drop: float) -> None:
    """Draw accuracy drop against latency, a point for each variant that was compared, as a PNG file.

    rows: from a search's report: "name", "status", "timed" or "screened" with p50_ms, "certified" or "selected" with
    drop and bound in percentage points, "network" for a smaller network; rows that were not timed are left out.
    max_drop: the accuracy budget, percentage points. Raises MissingExtra without matplotlib.
    """
    figure = new_figure(9.0, 4.4)
    axes = figure.subplots()
    timed = [row for row in rows if row["timed"] or row["screened"]]
    placed: list[float] = []
    for row in sorted(timed, key=lambda row: (row["timed"] or row["screened"])["p50_ms"]):
        times, loss = row["timed"] or row["screened"], row["certified"] or row["selected"]
        # variants that were dropped for their latency have no measured accuracy: a tick on the axis
        drop, bound = (loss["drop"], loss["bound"]) if loss else (0.0, 0.0)
        won = row["status"] == "certified"
        style: dict[str, Any] = {"color": BLUE if won else ORANGE, "marker": "o" if won else "x", "ls": "none"}
        if loss is None:
            style = {"color": "grey", "marker": "|", "ls": "none"}
        axes.errorbar(times["p50_ms"], drop, yerr=[[0.0], [max(0.0, bound - drop)]], capsize=3, **style)
        if loss is None and row.get("network"):
            # of smaller networks that lost the race only the mark is drawn: their names would hide the rest
            continue
        # a number above the bar; numbers of equally fast variants are stacked
        above = sum(abs(math.log(times["p50_ms"] / other)) < NEAR for other in placed)
        placed.append(times["p50_ms"])
        axes.annotate(
            str(len(placed)),
            (times["p50_ms"], max(drop, bound)),
            xytext=(0, 4 + 8 * above),
            textcoords="offset points",
            fontsize=7,
            ha="center",
            color=style["color"],
        )
        axes.annotate(
            f"{len(placed):2d}  {short_name(row['name'], 44)}, {times['p50_ms']:.2f} ms",
            (1.02, 1.0),
            xycoords="axes fraction",
            xytext=(0, -10 * len(placed)),
            textcoords="offset points",
            fontsize=7,
            color=style["color"],
        )
    axes.axhline(max_drop, color="black", lw=0.8, ls=(0, (4, 2)))
    axes.annotate(
        f"budget: {max_drop:g} points",
        (0.99, max_drop),
        xycoords=("axes fraction", "data"),
        fontsize=8,
        ha="right",
        va="bottom",
    )
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        # labels of 5, 7 and 9 would overlap their neighbours
        axis(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "123468" else "")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.margins(x=0.1, y=0.2)
    axes.set_xlabel("p50 latency of a call (ms)")
    axes.set_ylabel("accuracy drop (points), with 95 % upper bound")
    axes.set_title("blue: certified; orange: not certified; grey: dropped for its latency", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
