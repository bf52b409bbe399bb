"""A figure of accuracy over time from results of train.py: a line per contender, its runs as thin lines.

    python benchmarks/curves.py docs/curves-cifar10.png benchmarks/results/train/2026-11-24-cifar10-*.json

Several files are drawn into one figure; a contender that is in more than one has the runs of all of them. Time is that
of the loop, on a logarithmic axis. The end of each line is its final accuracy: vivace evaluates on validation images
during training and on the test images at the end, peers on the test images throughout.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from records import hardware

# Okabe and Ito's palette, for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"


def gather(paths: Sequence[Path]) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """The runs of each contender, in the order of the files, and a line that says where they were measured.

    Raises SystemExit where the files are not of one data set and one kind of machine: such times don't compare.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    origins = set()
    for path in paths:
        record = json.loads(path.read_text())
        count, device = hardware(record)
        cores = "" if record.get("device") == "cuda" else f", {count} cores"
        origins.add(f"{record['data']}, {device}{cores}")
        for name, its_runs in record["runs"].items():
            runs.setdefault(name, []).extend(its_runs)
    if len(origins) != 1:
        raise SystemExit(f"these results do not compare: {'; '.join(sorted(origins))}. Give those of one of them.")
    return runs, origins.pop()


def draw(runs: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Save the figure as PNG."""
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    for index, (name, its_runs) in enumerate(runs.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        for number, run in enumerate(its_runs):
            seconds = [point[0] for point in run["curve"]]
            top1 = [100 * point[1] for point in run["curve"]]
            axes.plot(seconds, top1, color=colour, linewidth=1.2, alpha=0.7, zorder=2)
            label = f"{name}: {100 * run['top1']:.1f} % after {run['train_seconds']:.0f} s" if number == 0 else None
            axes.plot(run["train_seconds"], 100 * run["top1"], marker, color=colour, label=label, zorder=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("seconds of the training loop")
    axes.set_ylabel("accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize=8, loc="best")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figure", type=Path, help="PNG file to write")
    parser.add_argument("results", type=Path, nargs="+", help="JSON files that train.py wrote")
    args = parser.parse_args()
    runs, origin = gather(args.results)
    draw(runs, origin, args.figure)


if __name__ == "__main__":
    main()
