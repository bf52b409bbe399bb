"""The two figures of the README, drawn from results: accuracy over time, and latency against accuracy.

    python benchmarks/figures.py

Writes docs/figures/training.png and docs/figures/acceleration.png. Each holds the SHA-256 of the results and of this
script that it was drawn from, by which a test finds one that is out of date.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from records import RESULTS

__all__ = ["FIGURES", "FOLDER", "fingerprint"]

FOLDER = Path(__file__).parents[1] / "docs/figures"
SMALL = "train/2026-11-27-cifar10-airbench-2x-amd-epyc.json"
PHOTOS = "train/2026-11-27-flowers-photos-2x-amd-epyc.json"
SEARCH = "accelerate/2026-11-25-flowers-resnet18-224-2x-intel-r-xeon-r-processor.json"
# Okabe and Ito's palette, for colour-blind readers
BLUE, RED, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"
# name in results → label, colour, where it stands beside the end of the line, in points, and how it is aligned there
CURVES = {
    "vivace-fast-98": ("vivace", BLUE, (7, -4), "left"),
    "airbench-channels-last": ("airbench94-Muon", RED, (4, -92), "right"),
    "vivace-fast-skip": ("vivace", BLUE, (7, -3), "left"),
    "timm-resnet18": ("timm, resnet18", GREEN, (7, -3), "left"),
    "fastai": ("fastai, resnet18", PURPLE, (7, 4), "left"),
    "ultralytics": ("Ultralytics, yolo11n", RED, (7, -10), "left"),
}
# variant → label, where it stands beside its point, in points
VARIANTS = {
    "eager fp32": ("PyTorch eager", (-34, -16)),
    "inductor fp32": ("torch.compile", (-26, 9)),
    "onnx fp32": ("ONNX Runtime\nand OpenVINO,\nfloat32", (-24, -40)),
    "openvino bf16": ("OpenVINO bf16", (8, -3)),
    "openvino int8": ("OpenVINO int8: fastest, but not\nproven to be within the budget", (8, -58)),
    "openvino int8, asymmetric": (
        "OpenVINO int8, asymmetric:\nproven, {ratio:.1f} times as fast as torch.compile",
        (9, -4),
    ),
}


def training(records: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy over the seconds of the loop, one panel against airbench, one against three frameworks."""
    figure = Figure(figsize=(9.6, 3.7), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    _curves(left, records[SMALL]["runs"], "CIFAR-10 (JPEG files), test accuracy")
    _curves(right, records[PHOTOS]["runs"], "3,670 photos of flowers, from scratch at 128 px")
    left.set_ylabel("accuracy, %")
    left.set_xlim(0, 1000)
    left.set_ylim(45, 95)
    right.set_xlim(0, 1180)
    right.set_xticks(range(0, 700, 100))
    right.set_ylim(10, 95)
    return figure


def _curves(axes: Axes, runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> None:
    for name, its_runs in runs.items():
        label, colour, offset, side = CURVES[name]
        for run in its_runs:
            seconds, top1 = zip(*run["curve"], strict=True)
            axes.plot(seconds, [100 * value for value in top1], color=colour, lw=1.6, alpha=0.85)
            axes.plot(run["train_seconds"], 100 * run["top1"], "o", color=colour, ms=5)
        end = tuple(statistics.fmean(run[key] for run in its_runs) for key in ("train_seconds", "top1"))
        text = f"{label}: {100 * end[1]:.1f} % in {end[0]:.0f} s"
        place: Any = {"xytext": offset, "textcoords": "offset points", "ha": side}
        axes.annotate(text, (end[0], 100 * end[1]), color=colour, fontsize=9, **place)
    axes.set_title(title, fontsize=9.5)
    axes.set_xlabel("seconds of the training loop, 2 cores of an AMD EPYC", fontsize=9)
    _plain(axes)


def acceleration(records: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Latency of each variant of one search against what it does to the accuracy, down to the proven worst case."""
    record = records[SEARCH]
    figure = Figure(figsize=(9.6, 3.9), dpi=110, layout="constrained")
    axes = figure.subplots()
    for row in record["rows"]:
        # the network itself, in two runtimes, loses nothing by definition
        same = {"drop": 0.0} if row["name"] in ("eager fp32", record["baseline"]) else None
        loss = row["certified"] or row["selected"] or same
        if loss is not None:
            _variant(axes, row, loss, won=row["name"] == record["winner"])
    budget = record["asked"]["max_drop"]
    axes.axhline(-budget, color="black", lw=0.9, ls=(0, (4, 2)))
    axes.annotate(
        f"budget: a drop of {budget:g} points", (0.995, -budget), (0, -12), ("axes fraction", "data"), "offset points",
        ha="right", fontsize=8.5,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(1.3, 27)
    axes.set_ylim(-2.1, 0.4)
    ticks = (1.5, 2, 3, 5, 10, 20)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("latency of one image (p50, ms), 2 cores of an Intel Xeon", fontsize=9)
    axes.set_ylabel("change of accuracy, points", fontsize=9)
    axes.set_title(
        "timm's resnet18 on photos of flowers, 224 px. Filled: judged on 552 unseen images, bar: worst case (95 %)",
        fontsize=9.5,
    )
    _plain(axes)
    return figure


def _variant(axes: Axes, row: Mapping[str, Any], loss: Mapping[str, Any], *, won: bool) -> None:
    """A point: filled, with its worst case, where it was judged on the images that chose nothing."""
    at = (row["timed"] or row["screened"])["p50_ms"], -loss["drop"]
    colour = BLUE if won else RED if row["certified"] else GREY
    if row["certified"]:
        axes.errorbar(*at, yerr=[[loss["bound"] - loss["drop"]], [0.0]], color=colour, capsize=4, lw=1.6)
    axes.plot(*at, "o", color=colour, ms=8 if won else 6, mfc=colour if row["certified"] else "white", zorder=3)
    if row["name"] in VARIANTS:
        label, offset = VARIANTS[row["name"]]
        text = label.format(ratio=row["ratio"]["ratio"])
        place: Any = {"xytext": offset, "textcoords": "offset points", "fontsize": 9, "color": colour}
        axes.annotate(text, at, weight="bold" if won else "normal", **place)


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


# file → what draws it, from which results
FIGURES: Mapping[str, tuple[Callable[[Mapping[str, Mapping[str, Any]]], Figure], tuple[str, ...]]] = {
    "training.png": (training, (SMALL, PHOTOS)),
    "acceleration.png": (acceleration, (SEARCH,)),
}


def fingerprint(name: str) -> str:
    """SHA-256 of this script and of the results that a figure is drawn from."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for result in FIGURES[name][1]:
        digest.update((RESULTS / result).read_bytes())
    return digest.hexdigest()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (draw, results) in FIGURES.items():
        figure = draw({result: json.loads((RESULTS / result).read_text()) for result in results})
        figure.savefig(FOLDER / name, metadata={"Source": fingerprint(name)})


if __name__ == "__main__":
    main()
