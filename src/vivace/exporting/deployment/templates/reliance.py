"""Whether to rely on an answer: the prediction set, whether to abstain, whether the image is like the known ones.

The thresholds are in model.json under "uncertainty"; they were calibrated on images that the network was not trained
on, and hold for images like these. Shapes: probs_NK, rows sum to 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from image_decoder.decode import shown
from manifest import ClassifierError

__all__ = ["Reliance", "told_of"]

# the likeliest classes that the entropy is summed over, and its exponent: Liu, Lochman & Zach, "GEN", CVPR 2023
NUM_TOP, GAMMA = 100, 0.1


class Reliance:
    """The thresholds for a coverage of prediction sets and an error among what is answered; None: those of model.json.

    Raises ClassifierError for rates that the folder has no thresholds for.
    """

    def __init__(self, told: dict[str, Any], *, coverage: float | None = None, risk: float | None = None) -> None:
        self.coverage = told["coverage"] if coverage is None else coverage
        self.risk = told["risk"] if risk is None else risk
        self._told = told
        self._threshold = _entry(told["set_thresholds"], self.coverage, "coverage")
        self._answered_from = _entry(told["answered_from"], self.risk, "abstain")

    def of(self, probs_K: np.ndarray) -> dict[str, Any]:
        """inside: positions of the classes in the set, the likeliest first; abstain; ood: unlike the known images.

        abstain is None where no confidence holds the error, ood where the folder has no score of it.
        """
        order = np.argsort(-probs_K, kind="stable")
        limit = np.inf if self._threshold is None else self._threshold
        # the likeliest class is always in the set
        within = [True, *(self._scores(probs_K, order)[order[1:]] <= limit)]
        ood = self._told["ood"]
        return {
            "inside": [int(place) for place, holds in zip(order, within, strict=True) if holds],
            "abstain": None if self._answered_from is None else bool(probs_K[order[0]] < self._answered_from),
            "ood": None if ood is None else bool(_entropy(probs_K) > ood["threshold"]),
        }

    def _scores(self, probs_K: np.ndarray, order: np.ndarray) -> np.ndarray:
        probs = probs_K.astype(np.float64)
        if self._told["method"] == "lac":
            return 1 - probs
        sums = np.cumsum(probs[order])
        if self._told["method"] == "raps":
            ranks = np.arange(1, len(probs) + 1)
            sums = sums + self._told["penalty"] * np.maximum(0, ranks - self._told["free_ranks"])
        scores = np.empty_like(sums)
        scores[order] = sums
        return scores


def told_of(row: dict[str, Any]) -> str:
    """What is to be known before an answer is relied on, after a tab; nothing where it can be."""
    inside = row.get("prediction_set", [])
    found = [f"one of {len(inside)}: {', '.join(shown(name) for name in inside)}"] if len(inside) > 1 else []
    found += ["abstain"] if row.get("abstain") else []
    found += ["unlike the known images"] if row.get("ood") else []
    return "\t" + "; ".join(found) if found else ""


def _entropy(probs_K: np.ndarray) -> float:
    probs = np.sort(probs_K.astype(np.float64))[-NUM_TOP:]
    return float((np.clip(probs * (1 - probs), 0, 1) ** GAMMA).sum())


def _entry(table: list[list[Any]], rate: float, name: str) -> float | None:
    for known, threshold in table:
        if abs(known - rate) < 1e-9:
            return None if threshold is None else float(threshold)
    rates = ", ".join(f"{known:g}" for known, _ in table)
    raise ClassifierError(f"{name}: this folder has no threshold for {rate:g}. Known: {rates}.")
