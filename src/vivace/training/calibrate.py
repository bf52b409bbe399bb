"""Probabilities that mean what they say: a trained network with its logits divided by a temperature."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vivace.metrics.calibration import best_temperature
from vivace.models.parts import scale_head

__all__ = ["MIN_IMAGES", "calibrated"]

# on fewer the temperature is off by more than what it mends
MIN_IMAGES = 100
# of the largest logit: the 10 bits of a GPU's TF32 are within it, a network that is not linear in its last layer is not
TOLERANCE = 1e-2


@torch.no_grad()
def calibrated(
    model: nn.Module, logits_NK: Tensor, labels_N: Tensor, images_BCHW: Tensor
) -> tuple[nn.Module, float | None]:
    """A copy of the network whose probabilities fit the labels best, and the temperature (arXiv:1706.04599).

    logits_NK float32 and labels_N int64: what the network said of validation images, on the CPU. images_BCHW: a few
    normalised ones on the network's device, on which the copy is tried. The division is in the weights of the last
    layer, so that every form of the network has it at no cost. The network itself and None where there are fewer than
    100 images, a logit is not finite, or the logits are not linear in that layer.
    """
    if len(labels_N) < MIN_IMAGES or not torch.isfinite(logits_NK).all():
        return model, None
    temperature = best_temperature(logits_NK.numpy(), labels_N.numpy())
    scaled = copy.deepcopy(model).eval()
    scale_head(scaled, 1 / temperature)
    model.eval()
    wanted_BK, got_BK = model(images_BCHW) / temperature, scaled(images_BCHW)
    # written so that NaN fails too
    if not float((wanted_BK - got_BK).abs().max()) <= TOLERANCE * float(wanted_BK.abs().max()):
        return model, None
    return scaled, temperature
