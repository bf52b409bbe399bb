"""Test-time augmentation: several views of an image, one answer.

Shapes: N images, K classes; pixels uint8 [N, H, W, C], probabilities float32 [N, K].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vivace.config import check_choice

__all__ = ["VIEWS", "averaged_probs"]

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


def averaged_probs(probs: Callable[[np.ndarray], np.ndarray], images_NHWC: np.ndarray, tta: str) -> np.ndarray:
    """The answer of all views of `tta`: "none", "mirror", or "shift" (mirrors, and diagonal shifts of a pixel).

    Logarithms of probabilities are averaged, which is averaging logits. Raises ConfigError for another name.
    """
    check_choice("tta", tta, tuple(VIEWS))
    if tta == "none":
        return probs(images_NHWC)
    total = sum(
        share * np.log(np.maximum(probs(_view(images_NHWC, shift, mirrored)), TINY))
        for share, shift, mirrored in VIEWS[tta]
    )
    assert isinstance(total, np.ndarray)
    powers = np.exp(total - total.max(1, keepdims=True))
    averaged: np.ndarray = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return averaged


def _view(images_NHWC: np.ndarray, shift: int, mirrored: bool) -> np.ndarray:
    if shift:
        height, width = images_NHWC.shape[1:3]
        # what comes in from outside is the image's reflection
        padded = np.pad(images_NHWC, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        start = 1 + shift
        images_NHWC = padded[:, start : start + height, start : start + width]
    return np.ascontiguousarray(images_NHWC[:, :, ::-1] if mirrored else images_NHWC)
