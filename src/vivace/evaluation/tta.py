"""Test-time augmentation: the predictions for several views of an image are averaged.

Shapes: N images, K classes; pixels uint8 [N, H, W, C], probabilities float32 [N, K].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vivace.config import check_choice

__all__ = ["VIEWS", "averaged_probs", "least_sure"]

# (weight, shift of rows and columns in px, mirrored): the views of airbench94 (arXiv:2404.00498)
VIEWS: dict[str, tuple[tuple[float, int, bool], ...]] = {
    "none": ((1.0, 0, False),),
    "mirror": ((0.5, 0, False), (0.5, 0, True)),
    "shift": (
        (0.25, 0, False),
        (0.25, 0, True),
        (0.125, -1, False),
        (0.125, -1, True),
        (0.125, 1, False),
        (0.125, 1, True),
    ),
}
# smaller than any probability that matters; avoids log(0)
TINY = 1e-30
# float32 probabilities next to 1 are this far from it
LEAST_ODDS = 1e-7


def averaged_probs(
    probs: Callable[[np.ndarray], np.ndarray],
    images_NHWC: np.ndarray,
    tta: str,
    *,
    plain_NK: np.ndarray | None = None,
    multi_label: bool = False,
) -> np.ndarray:
    """The prediction averaged over the views of `tta`: "none", "mirror", or "shift" (mirrors, diagonal shifts by 1 px).

    Log-probabilities are averaged, which equals averaging logits; of sets of labels (multi_label) log-odds. plain_NK:
    the predictions for the images as they are, if they are known. Raises ConfigError for another name.
    """
    check_choice("tta", tta, tuple(VIEWS))
    plain_NK = probs(images_NHWC) if plain_NK is None else plain_NK
    if tta == "none":
        return plain_NK
    (plain_weight, *_), *others = VIEWS[tta]
    if multi_label:
        odds_NK = plain_weight * _log_odds(plain_NK)
        for weight, shift, mirrored in others:
            odds_NK += weight * _log_odds(probs(_view(images_NHWC, shift, mirrored)))
        likely: np.ndarray = (1 / (1 + np.exp(-odds_NK))).astype(np.float32)
        return likely
    total = plain_weight * np.log(np.maximum(plain_NK, TINY))
    for weight, shift, mirrored in others:
        total += weight * np.log(np.maximum(probs(_view(images_NHWC, shift, mirrored)), TINY))
    powers = np.exp(total - total.max(1, keepdims=True))
    averaged: np.ndarray = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return averaged


def least_sure(probs_NK: np.ndarray, share: float, *, multi_label: bool = False) -> np.ndarray:
    """Indices of the fraction `share`, (0, 1], of the images with the smallest margin between their top two classes.

    multi_label: with a label closest to 0.5.
    The indices are sorted. More views hardly ever change the prediction for the other images.
    """
    count = math.ceil(share * len(probs_NK))
    if count == len(probs_NK) or probs_NK.shape[1] < 2:
        return np.arange(count)
    if multi_label:
        closest: np.ndarray = np.sort(np.argsort(np.abs(probs_NK - 0.5).min(1), kind="stable")[:count])
        return closest
    best_N2 = np.partition(probs_NK, -2, axis=1)[:, -2:]
    chosen: np.ndarray = np.sort(np.argsort(best_N2[:, 1] - best_N2[:, 0], kind="stable")[:count])
    return chosen


def _log_odds(probs_NK: np.ndarray) -> np.ndarray:
    clipped = np.clip(probs_NK.astype(np.float64), LEAST_ODDS, 1 - LEAST_ODDS)
    odds: np.ndarray = np.log(clipped) - np.log1p(-clipped)
    return odds


def _view(images_NHWC: np.ndarray, shift: int, mirrored: bool) -> np.ndarray:
    if shift:
        height, width = images_NHWC.shape[1:3]
        # pixels from outside the image are reflected
        padded = np.pad(images_NHWC, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        start = 1 + shift
        images_NHWC = padded[:, start : start + height, start : start + width]
    return np.ascontiguousarray(images_NHWC[:, :, ::-1] if mirrored else images_NHWC)
