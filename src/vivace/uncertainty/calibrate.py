"""From answers to labelled images to the thresholds of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vivace.statistics.conformal import choose_rule, true_scores
from vivace.statistics.detection import detection
from vivace.statistics.selective import levels_of
from vivace.uncertainty.record import MAX_SCORES, Calibrated, GeneratedSet, OodScore, Uncertainty
from vivace.uncertainty.scores import SCORES, Answers, neighbour_distance, ood_score

__all__ = ["COVERAGE", "MIN_IMAGES", "RISK", "calibrate"]

# what is promised where nothing else is asked for: the true class is in the set; of the answers are wrong
COVERAGE, RISK = 0.9, 0.05
# of calibration and choosing together: with fewer, a set that covers 90 % would hold every class
MIN_IMAGES = 20
# of the images, those that choose the rule and the levels and then calibrate nothing
CHOOSING, MAX_CHOOSING = 0.2, 2_000
# of calibration images, those that count as unlike them
FALSE_ALARMS = 0.05
# known features: 1 MB for 512 values each
MAX_KNOWN = 1_000
SEED = 0


def calibrate(
    answers: Answers,
    labels_N: np.ndarray,
    generated: Mapping[str, Answers],
    *,
    variant: str,
    images: str,
    also_chose: Sequence[str] = (),
    coverage: float = COVERAGE,
) -> Calibrated | None:
    """The thresholds of a network from its answers to labelled images that it was not trained on; None if under 20.

    labels_N: int64 in [0, K). A fifth of the images, drawn at random, chooses the rule with the smallest sets at
    `coverage` and the levels of confidence; the others calibrate. generated: answers to images of other kinds, which
    choose among the scores of images that are unlike the known ones. variant, images, also_chose: as in the record.
    """
    count = len(labels_N)
    if count < MIN_IMAGES:
        return None
    order = np.random.default_rng(SEED).permutation(count)[: MAX_SCORES + MAX_CHOOSING]
    num_choosing = min(MAX_CHOOSING, round(CHOOSING * len(order)))
    chosen, rest = order[:num_choosing], order[num_choosing:]
    probs, labels = answers.probs_NK, np.asarray(labels_N)
    rule = choose_rule(probs[chosen], labels[chosen], coverage=coverage)
    confidence, right = probs.max(1), probs.argmax(1) == labels
    levels = levels_of(confidence[chosen], right[chosen], confidence[rest], right[rest])
    scores = np.sort(true_scores(probs[rest], labels[rest], rule))
    ood, features = _ood(answers, order, generated)
    found = Uncertainty(
        variant=variant,
        images=images,
        num_choosing=num_choosing,
        also_chose=tuple(also_chose),
        rule=rule,
        scores=tuple(float(value) for value in scores),
        levels=levels,
        ood=ood,
    )
    return Calibrated(found, features)


def _ood(
    answers: Answers, order: np.ndarray, generated: Mapping[str, Answers]
) -> tuple[tuple[OodScore, ...], np.ndarray | None]:
    """(the scores, the best one first; features of known images, if their neighbours are a score)."""
    known_MD, own_N = None, np.full(len(answers), -1)
    if answers.features_ND is not None and np.isfinite(answers.features_ND).all():
        rows = order[:MAX_KNOWN]
        own_N[rows] = np.arange(len(rows))
        lengths = np.linalg.norm(answers.features_ND[rows], axis=1, keepdims=True)
        # as they will be read: rounded to float16
        known_MD = (answers.features_ND[rows] / np.maximum(lengths, 1e-12)).astype(np.float16).astype(np.float32)
    found = []
    for name in SCORES:
        known_N = ood_score(name, answers, known_MD)
        if known_N is None or not np.isfinite(known_N).all():
            continue
        if name == "neighbours" and answers.features_ND is not None and known_MD is not None:
            # an image is no neighbour of its own
            known_N = neighbour_distance(answers.features_ND, known_MD, own_N=own_N)
        sets = []
        for kind, others in generated.items():
            others_M = ood_score(name, others, known_MD)
            if others_M is not None and np.isfinite(others_M).all():
                sets.append(GeneratedSet(name=kind, result=detection(known_N, others_M)))
        # the conformal quantile: of images like these at most 5 % are above it
        ordered = np.sort(known_N)
        rank = min(len(ordered), int(np.ceil((len(ordered) + 1) * (1 - FALSE_ALARMS))))
        found.append(OodScore(name=name, threshold=float(ordered[rank - 1]), generated=tuple(sets)))
    # of equal ones the first: it needs least
    found.sort(key=lambda score: -round(score.auroc, 3))
    return tuple(found), known_MD if any(score.name == "neighbours" for score in found) else None
