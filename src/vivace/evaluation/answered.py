"""A predictor's answers to the images of a split, with scores of unlike images, and averaged over several views."""

from __future__ import annotations

import numpy as np

from vivace.data.caching.cache import CachedSplit
from vivace.evaluation.slicing import FeatureKeeper
from vivace.evaluation.tta import averaged_probs, least_sure
from vivace.evaluation.uncertainty import Scored
from vivace.prediction import Predictor

__all__ = ["add_views", "scored_answers"]


def scored_answers(
    predictor: Predictor, cached: CachedSplit, rows: np.ndarray, *, everything: bool, seed: int = 0
) -> tuple[Scored, FeatureKeeper]:
    """The answers to the images at `rows`, and what keeps their features.

    everything: with all scores of unlike images, not the bundle's alone. seed: of the images whose features are kept.
    """
    view, batch_size, decider = predictor.bundle.preprocess.view, predictor.batch_size, predictor.decider
    names = [] if decider is None else [score.name for score in decider.scores[: None if everything else 1]]
    keeper = FeatureKeeper(len(rows), seed=seed)
    batches = (
        keeper.take(
            predictor.answers(view(np.asarray(cached.images_NHWC[rows[at : at + batch_size]])), everything=True)
        )
        for at in range(0, len(rows), batch_size)
    )
    # the images may be those that the thresholds were calibrated on
    return Scored.of(batches, decider, names=names, may_be_known=True), keeper


def add_views(
    predictor: Predictor, cached: CachedSplit, rows: np.ndarray, probs: np.ndarray, tta: str, tta_share: float
) -> None:
    """Average the least certain of probs_NK over several views, in place."""
    view, batch_size, several = (
        predictor.bundle.preprocess.view,
        predictor.batch_size,
        predictor.bundle.info.multi_label,
    )
    chosen = least_sure(probs, tta_share, multi_label=several)
    for start in range(0, len(chosen), batch_size):
        batch = chosen[start : start + batch_size]
        pixels = view(np.asarray(cached.images_NHWC[rows[batch]]))
        probs[batch] = averaged_probs(predictor.probs, pixels, tta, plain_NK=probs[batch], multi_label=several)
