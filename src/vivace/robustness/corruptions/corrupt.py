"""`corrupt`: images under one of the common corruptions, in batches on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivace.config import check_choice, shown_value
from vivace.errors import ConfigError
from vivace.robustness.corruptions import noise_and_blur, weather_and_digital
from vivace.robustness.corruptions.constants import FAMILIES, SEVERITIES, severities_for
from vivace.robustness.corruptions.draws import Draws
from vivace.robustness.corruptions.noise_and_blur import as_levels

__all__ = ["CORRUPTIONS", "NAMES", "corrupt", "corrupted"]

NAMES = tuple(name for names in FAMILIES.values() for name in names)
# (images_BCHW in [0, 1], constants of the severity, random numbers) → images of the same shape
CORRUPTIONS: dict[str, Callable[[Tensor, Any, Draws], Tensor]] = {
    name: getattr(noise_and_blur, name, None) or getattr(weather_and_digital, name) for name in NAMES
}
# images that share a generator: fixed, so that how many are classified at once does not change their noise
CHUNK = 256


def corrupted(images_BCHW: Tensor, name: str, severity: int, draws: Draws) -> Tensor:
    """images_BCHW uint8 [B, C, H, W], on any device, under a corruption of a severity, 1 to 5; uint8.

    C: 1 or 3. The constants are those for the images' larger side (`severities_for`).
    """
    constants = severities_for(max(images_BCHW.shape[-2:])).of[name][severity - 1]
    return as_levels(CORRUPTIONS[name](images_BCHW.float() / 255, constants, draws))


def corrupt(
    images_NHWC: np.ndarray, name: str, severity: int, *, seed: int = 0, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Images under a common corruption (Hendrycks & Dietterich 2019, arXiv:1903.12261), uint8 [N, H, W, C].

    images_NHWC: uint8 [N, H, W, C], C 1 or 3. name: one of `NAMES`. severity: 1 to 5, with the constants of CIFAR-10-C
    for images up to 64 px, else of ImageNet-C. The same seed gives the same images on the same kind of device; each
    severity and corruption has noise of its own. Frost is not there: it needs photographs of frost.
    Raises ConfigError for an unknown name or severity, or images of another dtype or shape.
    """
    check_choice("corruption", name, NAMES)
    if severity not in SEVERITIES:
        raise ConfigError(f"a severity is 1, 2, 3, 4 or 5: got {shown_value(severity)}.")
    if images_NHWC.dtype != np.uint8 or images_NHWC.ndim != 4 or images_NHWC.shape[3] not in (1, 3):
        raise ConfigError(
            "corruptions are defined for uint8 images [N, H, W, C] in grey or RGB: "
            f"got {images_NHWC.dtype} {list(images_NHWC.shape)}."
        )
    place = torch.device(device)
    parts = [np.zeros((0, *images_NHWC.shape[1:]), np.uint8)]
    for start in range(0, len(images_NHWC), CHUNK):
        chunk = torch.from_numpy(np.ascontiguousarray(images_NHWC[start : start + CHUNK])).to(place)
        draws = Draws((seed, NAMES.index(name), severity, start // CHUNK), place)
        images_BCHW = corrupted(chunk.permute(0, 3, 1, 2).contiguous(), name, severity, draws)
        parts.append(images_BCHW.permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)
