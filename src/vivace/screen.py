"""What is drawn of images that a screen can't show: of 16 bits, of floats, or of other channels than grey and RGB."""

from __future__ import annotations

import numpy as np

__all__ = ["shown_pixels"]


def shown_pixels(image_HWC: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 1 | 3]: grey and RGB of uint8 themselves; of others the first channel, or three, each stretched.

    A channel's least value becomes black and its greatest white.
    """
    channels = image_HWC.shape[-1]
    if image_HWC.dtype == np.uint8 and channels in (1, 3):
        return image_HWC
    values = image_HWC[..., : 3 if channels >= 3 else 1].astype(np.float64)
    low, high = values.min((0, 1)), values.max((0, 1))
    stretched: np.ndarray = (255 * (values - low) / np.where(high > low, high - low, 1)).round().astype(np.uint8)
    return stretched
