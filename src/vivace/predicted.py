"""What is told of one image: its classes, and whether to rely on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivace.bundle import Bundle
from vivace.config import check_count, shown_value
from vivace.errors import ConfigError
from vivace.runtimes.loading import Classifier
from vivace.uncertainty.calibrate import COVERAGE, MIN_IMAGES, RISK
from vivace.uncertainty.decide import Decided, Decider, check_rate

__all__ = ["Prediction", "check_whole", "decider_for", "prediction_of", "ranking", "reliance_cells", "with_decided"]

# classes; of more, numpy's sort is faster
FEW = 256


@dataclass(frozen=True)
class Prediction:
    """One image's result."""

    path: str
    """What the image was called: its path, or "image 3" for one that has none and was at [3]."""
    label: str
    probability: float
    topk: tuple[tuple[str, float], ...]
    """(class, probability), the likeliest first; of sets of labels at least all of `labels`."""
    labels: tuple[str, ...] = ()
    """All that apply, the likeliest first: the one class; or, of a bundle for sets of labels, those whose probability
    reaches their threshold, perhaps none. `label` is the likeliest in any case."""
    prediction_set: tuple[str, ...] | None = None
    """Classes, the likeliest first, that hold the true one at the predictor's coverage; None, as the next three: the
    bundle has no calibrated thresholds."""
    abstain: bool | None = None
    """Whether the answer is too unsure for the predictor's risk; None also where no level of confidence holds it."""
    ood: bool | None = None
    """Whether the image is unlike those that the thresholds were calibrated on, of which 5 % are called so."""
    ood_score: float | None = None
    """Higher for images that are less like them."""
    heat_map: str | None = None
    """The picture of the image beside the places that speak for `label`; None: it was not asked for."""


def prediction_of(
    path: str, probs_K: np.ndarray, classes: Sequence[str], topk: int, thresholds_K: Sequence[float] | None = None
) -> Prediction:
    """The `topk` likeliest classes, or all where there are fewer, and the labels that reach their thresholds.

    thresholds_K: None where an image has one class.
    """
    order = ranking(probs_K)
    if thresholds_K is None:
        ranked = _ranked(order[:topk], probs_K, classes)
        return Prediction(path, ranked[0][0], ranked[0][1], ranked, (ranked[0][0],))
    apply = [place for place, index in enumerate(order) if probs_K[index] >= thresholds_K[index]]
    ranked = _ranked(order[: max([topk, *(at + 1 for at in apply)])], probs_K, classes)
    return Prediction(path, ranked[0][0], ranked[0][1], ranked, tuple(ranked[place][0] for place in apply))


def ranking(probs_K: np.ndarray) -> list[int]:
    """The classes, the likeliest first; equal ones in their order."""
    if len(probs_K) > FEW:
        order: list[int] = np.argsort(-probs_K, kind="stable").tolist()
        return order
    # numpy's sort lets other threads run and then waits for its turn: beside decoding threads that is milliseconds
    return sorted(range(len(probs_K)), key=probs_K.tolist().__getitem__, reverse=True)


def _ranked(order: Sequence[int], probs_K: np.ndarray, classes: Sequence[str]) -> tuple[tuple[str, float], ...]:
    # Python's own numbers all at once: one by one they take three times as long
    probs = probs_K.tolist()
    return tuple((classes[index], probs[index]) for index in order)


def with_decided(
    row: Prediction, decided: Decided, index: int, probs_K: np.ndarray, classes: Sequence[str]
) -> Prediction:
    """The prediction of the image at `index`, with what was decided for it."""
    in_set = decided.sets_NK[index].tolist()
    inside = [place for place in ranking(probs_K) if in_set[place]]
    return dataclasses.replace(
        row,
        prediction_set=tuple(classes[place] for place in inside),
        abstain=None if decided.abstain_N is None else bool(decided.abstain_N[index]),
        ood=None if decided.ood_N is None else bool(decided.ood_N[index]),
        ood_score=None if decided.ood_score_N is None else float(decided.ood_score_N[index]),
    )


def reliance_cells(row: Prediction, *, as_text: bool) -> dict[str, Any]:
    """Its prediction set and what else tells whether to rely on it, for tables and JSON; nothing where it has none.

    as_text: the set as one text, separated by semicolons, in place of a list.
    """
    if row.prediction_set is None:
        return {}
    found: Any = ";".join(row.prediction_set) if as_text else list(row.prediction_set)
    return {"prediction_set": found, "abstain": row.abstain, "ood": row.ood, "ood_score": row.ood_score}


def decider_for(
    bundle: Bundle, classify: Classifier, *, coverage: float | None, abstain: float | None
) -> Decider | None:
    """What applies the thresholds of a bundle; None if it has none.

    coverage, abstain: as for `Predictor`. Raises ConfigError for one out of range, or that the bundle has no thresholds
    for; BundleError if they are damaged.
    """
    rates = {"coverage": coverage, "abstain": abstain}
    asked = {name: value for name, value in rates.items() if value is not None}
    for name, value in asked.items():
        check_rate(name, value)
    found = bundle.uncertainty()
    if found is None:
        for name, value in asked.items():
            raise ConfigError(f"{name} would be ignored: got {value}, and {_why_no_thresholds(bundle)}")
        return None
    more = hasattr(classify, "answers")
    return Decider(
        found,
        bundle.known_features() if more else None,
        coverage=asked.get("coverage", COVERAGE),
        risk=asked.get("abstain", RISK),
        before_softmax=more,
    )


def _why_no_thresholds(bundle: Bundle) -> str:
    """Why a bundle has no prediction sets, and how to get them."""
    if bundle.info.multi_label:
        return (
            "images have sets of labels: prediction sets and abstaining are for one class an image. Leave it out; each "
            "label has its own threshold already."
        )
    if "privacy" in bundle.info.metrics:
        return (
            f"{bundle.folder} was trained privately and has no calibrated thresholds: they would tell of the "
            "images that they are calibrated on. Leave it out."
        )
    return (
        f"{bundle.folder} has no calibrated thresholds: it is older than them, or was validated on under {MIN_IMAGES} "
        "images. Train or accelerate again, with more validation images, or leave it out."
    )


def check_whole(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is a whole number of 1 or more, and not so many that no library takes it."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is out of range: got {shown_value(value)}. Give a whole number of 1 or more.")
    check_count(name, value)
