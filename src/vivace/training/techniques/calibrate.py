"""Temperature scaling: calibrated probabilities of a trained network, at no cost when it is used."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vivace.metrics.calibration import best_temperature
from vivace.models.parts import scale_head

__all__ = ["MIN_IMAGES", "calibrated"]

# with fewer images the error of the temperature may exceed what it improves
MIN_IMAGES = 10
# of a prior on the logarithm of the temperature, which decides while there are few images
DEVIATION = 0.5
# relative to the largest logit: rounding to TF32 (10 bits) passes, a head that is not linear does not
TOLERANCE = 1e-2


@torch.no_grad()
def calibrated(
    model: nn.Module, logits_NK: Tensor, labels_N: Tensor, images_BCHW: Tensor
) -> tuple[nn.Module, float | None]:
    """A copy of the network whose probabilities fit the labels best, and the temperature (arXiv:1706.04599).

    logits_NK float32 and labels_N int64: of validation images, on the CPU. images_BCHW: a few normalised images on the
    network's device, on which the copy is checked. The logits are divided by the temperature in the weights of the last
    layer, so that every variant of the network is calibrated. Returns the network itself and None if there are fewer
    than 10 images, a logit is not finite, or the logits are not linear in that layer.
    """
    if len(labels_N) < MIN_IMAGES or not torch.isfinite(logits_NK).all():
        return model, None
    temperature = best_temperature(logits_NK.numpy(), labels_N.numpy(), deviation=DEVIATION)
    scaled = copy.deepcopy(model).eval()
    scale_head(scaled, 1 / temperature)
    model.eval()
    wanted_BK, got_BK = model(images_BCHW) / temperature, scaled(images_BCHW)
    # "not <=" rather than ">": NaN must fail too
    if not float((wanted_BK - got_BK).abs().max()) <= TOLERANCE * float(wanted_BK.abs().max()):
        return model, None
    return scaled, temperature
