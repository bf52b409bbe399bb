"""Figures of a run and of an evaluation, as PNG files. Plain data in: JSON values, arrays, a metrics.csv.

matplotlib is used without pyplot: no window, no global state. Colours are those of Okabe and Ito, which colour-blind
people can tell apart.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.errors import MissingExtra
from vivace.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["confusion", "curves", "mistakes"]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
DPI = 130
# beyond this many classes a number no longer fits into a cell, and beyond the second a name not beside a row
MAX_CLASSES_WITH_NUMBERS = 25
MAX_CLASSES_WITH_NAMES = 60
MAX_NAME = 18


def curves(metrics_csv: Path, path: Path) -> None:
    """Loss, accuracy and learning rate over the epochs of a run. Raises MissingExtra without matplotlib."""
    with metrics_csv.open(encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    figure = _figure(9.6, 3.4)
    loss_axes, top1_axes, lr_axes = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    # a short run has few points: show them
    style = {"marker": "o", "markersize": 3} if len(rows) <= 30 else {}
    for axes, what, label, factor in (
        (loss_axes, "loss", "loss (nats)", 1),
        (top1_axes, "top1", "top-1 accuracy (%)", 100),
    ):
        axes.plot(epochs, [factor * row[f"train_{what}"] for row in rows], color=BLUE, label="training", **style)
        axes.plot(epochs, [factor * row[f"val_{what}"] for row in rows], color=ORANGE, label="validation", **style)
        axes.set_ylabel(label)
        axes.legend(frameon=False)
    if rows:
        best = max(rows, key=lambda row: row["val_top1"])
        top1_axes.set_title(f"best validation {100 * best['val_top1']:.2f} % at epoch {best['epoch']:g}", fontsize=9)
    loss_axes.set_title("training loss includes smoothing and augmentation", fontsize=9)
    lr_axes.plot(epochs, [row["lr"] for row in rows], color=GREEN, **style)
    lr_axes.set_ylabel("learning rate")
    lr_axes.set_ylim(bottom=0)
    lr_axes.set_title("rate of the step before each validation", fontsize=9)
    for axes in (loss_axes, top1_axes, lr_axes):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def confusion(matrix_KK: Sequence[Sequence[int]] | np.ndarray, classes: Sequence[str], path: Path) -> None:
    """The confusion matrix, coloured by the share of each true class's images. Raises MissingExtra."""
    counts = np.asarray(matrix_KK)
    num_classes = len(classes)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(12.0, 3.2 + 0.42 * num_classes)
    figure = _figure(side + 1.0, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class (%)")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if num_classes <= MAX_CLASSES_WITH_NAMES:
        size = 9 if num_classes <= 25 else 6
        names = [_short(name) for name in classes]
        axes.set_xticks(range(num_classes), names, rotation=90 if num_classes > 5 else 0, fontsize=size)
        axes.set_yticks(range(num_classes), names, fontsize=size)
    if num_classes <= MAX_CLASSES_WITH_NUMBERS:
        size = 9 if num_classes <= 12 else 6
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 55 else "black"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=size)
    right = int(np.trace(counts))
    axes.set_title(
        f"{right:,} of {int(counts.sum()):,} right ({100 * right / max(counts.sum(), 1):.2f} %)", fontsize=10
    )
    _save(figure, path)


def mistakes(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The worst mistakes with their images. Raises MissingExtra.

    rows: each with "image" (uint8 [H, W, 1 | 3]), "label", "predicted", "probability" of the predicted class in [0, 1]
    and "name" of the file.
    """
    columns = 6
    count = max(1, -(-len(rows) // columns))
    figure = _figure(9.6, 2.05 * count + 0.4)
    grid = np.atleast_1d(np.asarray(figure.subplots(count, columns, squeeze=False))).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, row in zip(grid, rows, strict=False):
        image = np.asarray(row["image"])
        grey = image.shape[-1] == 1
        axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)
        axes.set_title(
            f"is {_short(row['label'])}\nsaid {_short(row['predicted'])} {100 * row['probability']:.0f} %", fontsize=8
        )
    title = "the most confident mistakes" if rows else "no mistakes"
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "report", "drawing figures") from None
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _short(name: str) -> str:
    # a dollar sign would start a formula
    text = name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
    return text.replace("$", r"\$").encode("utf-8", "replace").decode()


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # scripts that the default font lacks come out as boxes: no reason to end a run
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        with atomic_file(path) as file:
            figure.savefig(file, format="png")
