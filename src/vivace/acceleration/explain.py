"""What a person should know of a search beside its table: from rows, which nothing here changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vivace.acceleration.decide import MAX_CONTROL, UNKNOWN, is_level, is_noisy
from vivace.acceleration.rows import Row, Status, Verdict
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss, images_to_prove

__all__ = ["at_chance", "explain", "nearest"]


def explain(rows: Sequence[Row], winner: Row | None, control: Ratio | None, max_drop: float) -> list[str]:
    """What a person should know of a search beside its table."""
    notes = []
    for row in rows:
        if row.status is Status.NOT_PROVEN and row.certified is not None:
            notes.append(_unproven(row.name, row.certified, max_drop))
    best = nearest(rows) if winner is None else None
    if best is not None:
        notes.append(f"the best that was not accepted: {best.name}, {_speed_and_loss(best)}")
    return notes if control is None else notes + _about(control)


def _about(control: Ratio) -> list[str]:
    ratio, low, high = control
    if low is None or high is None:
        return ["the baseline was timed against itself in a single process: no interval follows from that"]
    if is_noisy(control):
        return [
            f"{Verdict.NOISY.reason}: the baseline is {ratio:.2f} [{low:.2f}, {high:.2f}] times as fast as itself, and "
            f"no speed is believed outside {1 / MAX_CONTROL:g} to {MAX_CONTROL:g}; search again when nothing else runs"
        ]
    if is_level(control):
        return []
    return [
        f"the baseline in a second process is [{low:.3f}, {high:.3f}] times as fast as in the first: no form is called "
        "faster by less than that"
    ]


def at_chance(rows: Sequence[Row], labels_N: np.ndarray) -> str | None:
    """A warning where the model is right no more often than an answer that is always the same would be."""
    seen = next((loss for row in rows for loss in (row.certified, row.selected) if loss is not None), None)
    if seen is None or not len(labels_N):
        return None
    constant = float(np.bincount(labels_N).max() / len(labels_N))
    # two standard errors of a share
    if seen.top1_before > constant + 2 * math.sqrt(constant * (1 - constant) / seen.num_images):
        return None
    return (
        f"the model is at chance level: {seen.top1_before:.1%} on {seen.num_images:,} images, and always the most "
        f"frequent class gives {constant:.1%}; a bound on what such a model loses says nothing"
    )


def nearest(rows: Sequence[Row]) -> Row | None:
    """Where nothing was accepted, the form that came nearest: of those that are faster, the one of the least bound."""
    faster = [row for row in rows if row.times_faster > 1 and row.selected is not None]
    return min(faster, key=lambda row: (row.certified or row.selected or UNKNOWN).bound, default=None)


def _speed_and_loss(row: Row) -> str:
    loss = row.certified or row.selected or UNKNOWN
    return (
        f"{row.times_faster:.2f} times as fast, {100 * loss.drop:.2f} points lost on {loss.num_images:,} images, "
        f"at most {100 * loss.bound:.2f}"
    )


def _unproven(name: str, loss: PairedLoss, max_drop: float) -> str:
    needed = images_to_prove(loss, max_drop)
    would = (
        f"about {needed:,} images like these would prove it"
        if needed is not None
        else "no number of images would prove it, for what was lost is not under the budget"
    )
    return (
        f"{name}: {100 * loss.drop:.2f} points lost on {loss.num_images:,} images, at most "
        f"{100 * loss.bound:.2f} with {100 * loss.confidence:.3g} % confidence: not within {100 * max_drop:g}; {would}"
    )
