"""Temperature scaling: calibrated probabilities of a trained network, at no cost when it is used."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vivace.metrics.calibration import best_temperature
from vivace.metrics.platt import best_scales
from vivace.models.parts import adjust_head, head_shifts, scale_head
from vivace.training.techniques.tasks import ONE_CLASS, Task

__all__ = ["MIN_IMAGES", "calibrated"]

# with fewer images the error of the temperature may exceed what it improves
MIN_IMAGES = 10
# of sets of labels, whose scales have no prior
MIN_SET_IMAGES = 100
# of a prior on the logarithm of the temperature, which decides while there are few images
DEVIATION = 0.5
# relative to the largest logit: rounding to TF32 (10 bits) passes, a head that is not linear does not
TOLERANCE = 1e-2


@torch.no_grad()
def calibrated(
    model: nn.Module, logits_NK: Tensor, labels_N: Tensor, images_BCHW: Tensor, task: Task = ONE_CLASS
) -> tuple[nn.Module, float | None]:
    """A copy of the network whose probabilities fit the labels best, and the temperature (arXiv:1706.04599).

    logits_NK float32 and labels_N int64: of validation images, on the CPU. images_BCHW: a few normalised images on the
    network's device, on which the copy is checked. The logits are divided by the temperature in the weights of the last
    layer, so that every variant of the network is calibrated. Returns the network itself and None if there are fewer
    than 10 images, a logit is not finite, or the logits are not linear in that layer. With sets of labels each label
    has a scale and a shift of its own, of 100 images or more, and there is no temperature.
    """
    if task.label_sets_MK is not None:
        return _calibrated_labels(model, logits_NK, task.targets(labels_N, logits_NK.shape[1]).cpu(), images_BCHW), None
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


@torch.no_grad()
def _calibrated_labels(model: nn.Module, logits_NK: Tensor, hits_NK: Tensor, images_BCHW: Tensor) -> nn.Module:
    """A copy of the network whose logits are those of `best_scales`, in the weights of its last layer.

    hits_NK: 1 for the labels of each image. A network whose last layer has no bias gets scales alone. The rest, and
    when it is the network itself, is as for `calibrated`, but for the number of images.
    """
    if len(hits_NK) < MIN_SET_IMAGES or not torch.isfinite(logits_NK).all():
        return model
    scales, shifts = best_scales(logits_NK.numpy(), hits_NK.numpy() > 0, shifts=head_shifts(model, hits_NK.shape[1]))
    scale_K, shift_K = (torch.from_numpy(values).float().to(images_BCHW.device) for values in (scales, shifts))
    adjusted = copy.deepcopy(model).eval()
    if not adjust_head(adjusted, scale_K, shift_K):
        return model
    model.eval()
    wanted_BK, got_BK = model(images_BCHW) * scale_K + shift_K, adjusted(images_BCHW)
    if not float((wanted_BK - got_BK).abs().max()) <= TOLERANCE * float(wanted_BK.abs().max()):
        return model
    return adjusted
