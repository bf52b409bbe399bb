"""Describes how a data source was understood, in a few lines for the user (no torch here)."""

from __future__ import annotations

import contextlib
import sys

import numpy as np

from vivace.data.holdout import strata
from vivace.data.labelsets import labels_per_image
from vivace.data.layouts.listing import skipped_summary
from vivace.data.splits import DataSource
from vivace.data.text import shortened
from vivace.errors import printable
from vivace.notices import warn

__all__ = ["notes_of", "report", "summary"]


def summary(source: DataSource, val_fraction: float = 0.0) -> str:
    """One line: classes, images per split, and the smallest and largest class.

    val_fraction: the fraction of train that will be held out if there is no val (the counts are estimates); 0: none.
    """
    names = source.classes
    ends = f" ({shortened(names[0])} … {shortened(names[-1])})" if len(names) > 1 else ""
    sizes = {name: len(split) for name, split in source.splits.items()}
    sets, what = source.label_sets, "class"
    parts = [f"1 class ({shortened(names[0])})" if len(names) == 1 else f"{len(names):,} classes{ends}"]
    if sets is not None:
        what = "label"
        mean = labels_per_image([split.labels for split in source.splits.values()], sets)
        parts = [f"{len(names):,} labels{ends}, {mean:.1f} an image"]
    held = 0
    if val_fraction and "train" in sizes and "val" not in sizes:
        labels_N = source.splits["train"].labels
        counts = np.bincount(labels_N if sets is None else strata(labels_N, sets, val_fraction), minlength=1)
        held = int(sum(max(1, round(val_fraction * count)) for count in counts.tolist() if count > 1))
    for name, size in sizes.items():
        parts.append(f"{size - (held if name == 'train' else 0):,} {name}")
        if name == "train" and held:
            parts.append(f"{held:,} val (held out)")
    line = ", ".join(parts)
    first = next(iter(source.splits), None)
    if first is not None and len(names) > 1:
        counts = source.counts(source.splits[first].labels)
        low, high = int(counts.argmin()), int(counts.argmax())
        if counts[low] == counts[high]:
            line += f"; {counts[low]:,} of each {what}"
        else:
            line += f"; smallest {what} {shortened(names[low])}: {counts[low]:,}"
            line += f", largest {shortened(names[high])}: {counts[high]:,}"
        line += "" if first == "train" else f" ({first})"
    return line


def notes_of(source: DataSource) -> list[str]:
    """One line for each thing that was left out, guessed or missing, including skipped files."""
    line = skipped_summary(source.ignored, sum(len(split) for split in source.splits.values()))
    return [*source.notes, *([line] if line else [])]


def report(source: DataSource, val_fraction: float = 0.0, *, quiet: bool = False) -> None:
    """Write the summary to stderr and the notes as warnings. quiet: write the summary only if there are notes."""
    notes = notes_of(source)
    # a closed stderr must not end a run
    if sys.stderr is not None and (notes or not quiet):
        with contextlib.suppress(OSError, ValueError):
            print(printable(f"data: {summary(source, val_fraction)}"), file=sys.stderr, flush=True)
    for line in notes:
        warn(line)
