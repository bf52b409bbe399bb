"""Split conformal prediction: sets of classes that hold the true one at a stated rate (no torch here).

A rule scores every class of an image, low for a likely one. The true classes of n calibration images have n scores; a
set holds the classes that score at most their ⌈(n + 1)·coverage⌉-th smallest. Of a new image, exchangeable with these,
the true class is in its set with a probability of at least `coverage`, and of at most 1 / (n + 1) more where no scores
are equal: no assumption about the network is needed. Source: Vovk et al. 2005; Angelopoulos & Bates 2021,
arXiv:2107.07511.

Shapes: n calibration images, N images, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["METHODS", "SetRule", "choose_rule", "class_scores", "coverage_band", "score_threshold", "true_scores"]

METHODS = ("lac", "aps", "raps")
# of RAPS, tried where a rule is chosen: the penalty of a rank, and how many ranks are free
PENALTIES, FREE_RANKS = (0.001, 0.01, 0.1), (1, 2, 5)
# (n + 1)·0.9 is 9.000000000000002 of some n where it is 9
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class SetRule:
    """How classes are scored."""

    method: str = "lac"
    """lac: 1 - p (Sadinle et al. 2019, arXiv:1609.00451), the smallest sets on average. aps: the probability of the
    class and of all that are likelier (Romano et al. 2020, arXiv:2006.02544), larger sets for harder images. raps: the
    same with a penalty for low ranks (Angelopoulos et al. 2021, arXiv:2009.14193). All without randomisation: the same
    image gets the same set."""
    penalty: float = 0.0
    """raps: added for each rank beyond `free_ranks`, >= 0."""
    free_ranks: int = 0
    """raps: ranks without a penalty, >= 0."""

    def __str__(self) -> str:
        return self.method.upper()


def class_scores(probs_NK: np.ndarray, rule: SetRule) -> np.ndarray:
    """The score of every class, float64 [N, K], >= 0. probs_NK: float, rows sum to 1. ValueError: unknown method."""
    probs = np.asarray(probs_NK, np.float64)
    if rule.method == "lac":
        return 1 - probs
    if rule.method not in METHODS:
        raise ValueError(f"the method is unknown: got {rule.method!r}. Known: {', '.join(METHODS)}.")
    # equal probabilities in the order of the classes
    order = np.argsort(-probs, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(probs, order, axis=1), axis=1)
    if rule.method == "raps":
        sums = sums + rule.penalty * np.maximum(0, np.arange(1, probs.shape[1] + 1) - rule.free_ranks)
    scores = np.empty_like(sums)
    np.put_along_axis(scores, order, sums, axis=1)
    return scores


def true_scores(probs_NK: np.ndarray, labels_N: np.ndarray, rule: SetRule) -> np.ndarray:
    """The scores of the true classes, float64 [N]. labels_N: int64 in [0, K)."""
    scores: np.ndarray = np.take_along_axis(class_scores(probs_NK, rule), np.asarray(labels_N)[:, None], axis=1)[:, 0]
    return scores


def score_threshold(scores_n: np.ndarray, coverage: float) -> float:
    """The score up to which a class is in the set: the ⌈(n + 1)·coverage⌉-th smallest.

    Infinite, so that sets hold all classes, where n images are too few for the coverage: n < coverage / (1 - coverage).
    Raises ValueError for a coverage outside (0, 1), or no scores.
    """
    count = len(scores_n)
    if count == 0 or not 0 < coverage < 1:
        raise ValueError(f"impossible: {count} scores and a coverage of {coverage}. Give 1 or more, and (0, 1).")
    rank = _rank(count, coverage)
    return math.inf if rank > count else float(np.sort(np.asarray(scores_n, np.float64))[rank - 1])


def _rank(count: int, coverage: float) -> int:
    return math.ceil((count + 1) * coverage - ROUNDING)


def coverage_band(
    num_calibration: int, num_images: int, coverage: float, *, level: float = 0.95
) -> tuple[float, float]:
    """(low, high): where the coverage of `num_images` new images lies with a probability of `level`, in [0, 1].

    It varies with the calibration images and with the new ones: the number that is covered has a beta-binomial
    distribution with a = ⌈(n + 1)·coverage⌉ and b = n + 1 - a (Vovk 2012, arXiv:1209.2673), where no scores are equal.
    Each tail beyond the band has (1 - level) / 2 at most. Raises ValueError for no images.
    """
    if num_calibration < 1 or num_images < 1 or not 0 < coverage < 1:
        raise ValueError(f"impossible: {num_calibration} and {num_images} images, coverage {coverage}")
    a = _rank(num_calibration, coverage)
    b = num_calibration + 1 - a
    if b < 1:
        return 1.0, 1.0
    counts = range(num_images + 1)
    logs = np.array(
        [_log_choose(num_images, k) + _log_beta(k + a, num_images - k + b) - _log_beta(a, b) for k in counts]
    )
    cumulated = np.cumsum(np.exp(logs))
    tail = (1 - level) / 2
    low = int(np.searchsorted(cumulated, tail, side="right"))
    high = int(np.searchsorted(cumulated, 1 - tail, side="left"))
    return low / num_images, min(high, num_images) / num_images


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def choose_rule(probs_NK: np.ndarray, labels_N: np.ndarray, *, coverage: float) -> SetRule:
    """The rule with the smallest sets on average, at this coverage; of equal ones the first of LAC, APS, RAPS.

    Not on the images that the threshold is computed from: it would cover less there than it says. Sets are counted with
    their likeliest class, as `vivace predict` gives them.
    """
    rules = [SetRule(), SetRule(method="aps")]
    rules += [SetRule(method="raps", penalty=penalty, free_ranks=rank) for penalty in PENALTIES for rank in FREE_RANKS]
    sizes = []
    for rule in rules:
        threshold = score_threshold(true_scores(probs_NK, labels_N, rule), coverage)
        sizes.append(np.maximum(1, (class_scores(probs_NK, rule) <= threshold).sum(1)).mean())
    return rules[int(np.argmin(sizes))]
