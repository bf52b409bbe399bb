"""What a search says beside its table of results, in words. Nothing here changes a result."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vivace.acceleration.decide import MAX_AA_RATIO, UNKNOWN, is_level, is_noisy
from vivace.acceleration.results import Result, Status, Verdict
from vivace.statistics.intervals import Ratio
from vivace.statistics.paired import PairedLoss, images_to_prove

__all__ = ["at_chance", "explain", "nearest"]


def explain(results: Sequence[Result], winner: Result | None, aa_test: Ratio | None, max_drop: float) -> list[str]:
    """Notes for people: why variants were not proven, which one came nearest, and what the A/A test says."""
    notes = []
    for result in results:
        if result.status is Status.NOT_PROVEN and result.certified is not None:
            notes.append(_unproven(result.name, result.certified, max_drop))
    best = nearest(results) if winner is None else None
    if best is not None:
        notes.append(f"the best variant that was not accepted: {best.name}, {_speed_and_loss(best)}")
    return notes if aa_test is None else notes + _about(aa_test)


def _about(aa_test: Ratio) -> list[str]:
    ratio, low, high = aa_test
    if low is None or high is None:
        return ["the A/A test ran in a single process: it has no interval"]
    if is_noisy(aa_test):
        return [
            f"{Verdict.NOISY.reason}: in the A/A test the baseline is {ratio:.2f} [{low:.2f}, {high:.2f}] times as "
            f"fast as itself; outside {1 / MAX_AA_RATIO:g} to {MAX_AA_RATIO:g} no ratio is trusted. Search again when "
            "nothing else runs"
        ]
    if is_level(aa_test):
        return []
    return [
        f"in the A/A test the baseline is [{low:.3f}, {high:.3f}] times as fast as itself: a variant has to be faster "
        "by more than that"
    ]


def at_chance(results: Sequence[Result], labels_N: np.ndarray, what: str = "class") -> str | None:
    """A warning if the model is no more accurate than always predicting the most frequent class; else None.

    what: an answer is called: "class", or "set of labels".
    """
    seen = next((loss for result in results for loss in (result.certified, result.selected) if loss is not None), None)
    if seen is None or not len(labels_N):
        return None
    constant = float(np.bincount(labels_N).max() / len(labels_N))
    # two standard errors of a fraction
    if seen.top1_before > constant + 2 * math.sqrt(constant * (1 - constant) / seen.num_images):
        return None
    return (
        f"the model is at chance level: {seen.top1_before:.1%} on {seen.num_images:,} images, and always predicting "
        f"the most frequent {what} gives {constant:.1%}; a bound on the accuracy drop of such a model means nothing"
    )


def nearest(results: Sequence[Result]) -> Result | None:
    """The variant that came nearest to being accepted: of those that are faster, the one with the smallest bound."""
    faster = [result for result in results if result.times_faster > 1 and result.selected is not None]
    return min(faster, key=lambda result: (result.certified or result.selected or UNKNOWN).bound, default=None)


def _speed_and_loss(result: Result) -> str:
    loss = result.certified or result.selected or UNKNOWN
    return f"{result.times_faster:.2f} times as fast, {_drop(loss)}, upper bound {100 * loss.bound:.2f}"


def _drop(loss: PairedLoss) -> str:
    what, points = ("gain", -100 * loss.drop) if loss.drop < 0 else ("drop", 100 * loss.drop)
    return f"accuracy {what} {points:.2f} points on {loss.num_images:,} images"


def _unproven(name: str, loss: PairedLoss, max_drop: float) -> str:
    needed = images_to_prove(loss, max_drop)
    would = (
        f"about {needed:,} images like these would prove it"
        if needed is not None
        else "no number of images would prove it: the drop itself is not below the budget"
    )
    return (
        f"{name}: {_drop(loss)}, upper bound {100 * loss.bound:.2f} with {100 * loss.confidence:.3g} % confidence: "
        f"not within {100 * max_drop:g}; {would}"
    )
