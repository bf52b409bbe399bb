"""Test-time augmentation: several views of an image, one answer.

Shapes: N images, K classes; pixels uint8 [N, H, W, C], probabilities float32 [N, K].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vivace.config import check_choice

__all__ = ["VIEWS", "averaged_probs", "least_sure"]

# (share of the answer, rows and columns shifted, mirrored): those of airbench94 (arXiv:2404.00498)
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
# below every probability that a softmax of float32 can tell from zero
TINY = 1e-30


def averaged_probs(
    probs: Callable[[np.ndarray], np.ndarray],
    images_NHWC: np.ndarray,
    tta: str,
    *,
    plain_NK: np.ndarray | None = None,
) -> np.ndarray:
    """The answer of all views of `tta`: "none", "mirror", or "shift" (mirrors, and diagonal shifts of a pixel).

    Logarithms of probabilities are averaged, which is averaging logits. plain_NK: the answers to the images as they
    are, where they are known already. Raises ConfigError for another name.
    """
    check_choice("tta", tta, tuple(VIEWS))
    plain_NK = probs(images_NHWC) if plain_NK is None else plain_NK
    if tta == "none":
        return plain_NK
    (plain_share, *_), *others = VIEWS[tta]
    total = plain_share * np.log(np.maximum(plain_NK, TINY))
    for share, shift, mirrored in others:
        total += share * np.log(np.maximum(probs(_view(images_NHWC, shift, mirrored)), TINY))
    powers = np.exp(total - total.max(1, keepdims=True))
    averaged: np.ndarray = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return averaged


def least_sure(probs_NK: np.ndarray, share: float) -> np.ndarray:
    """Indices of the share of the images, (0, 1], whose two best answers are closest to each other, in their order.

    Other views change hardly any answer of the rest, and need not be looked at.
    """
    count = math.ceil(share * len(probs_NK))
    if count == len(probs_NK) or probs_NK.shape[1] < 2:
        return np.arange(count)
    best_N2 = np.partition(probs_NK, -2, axis=1)[:, -2:]
    chosen: np.ndarray = np.sort(np.argsort(best_N2[:, 1] - best_N2[:, 0], kind="stable")[:count])
    return chosen


def _view(images_NHWC: np.ndarray, shift: int, mirrored: bool) -> np.ndarray:
    if shift:
        height, width = images_NHWC.shape[1:3]
        # what comes in from outside is the image's reflection
        padded = np.pad(images_NHWC, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        start = 1 + shift
        images_NHWC = padded[:, start : start + height, start : start + width]
    return np.ascontiguousarray(images_NHWC[:, :, ::-1] if mirrored else images_NHWC)
